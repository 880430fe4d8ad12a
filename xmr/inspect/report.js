"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const data = read("data"), thumbnails = read("thumbnails");
const place = new Map(data.images.map((row, at) => [row, at]));
const captionPlace = new Map(data.captions.map((row, at) => [row, at]));
const captionsOf = data.images.map(() => []);
data.of.forEach((image, caption) => captionsOf[image].push(caption));
const field = document.getElementById("field"), found = document.getElementById("found"), said = document.getElementById("said");

// Every text goes in as a text node: a caption is never markup.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "click") node.addEventListener("click", value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// On a wide screen everything is open; on a phone a section opens when it is asked for. Paper has all.
const folds = [...document.querySelectorAll("details.fold")];
if (matchMedia("(min-width: 700px)").matches) folds.forEach(fold => { fold.open = true; });
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const fold = target && target.closest("details.fold");
  if (fold) { fold.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", unfold);
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach(fold => { fold.open = true; });
});

function fill(button) {
  const row = Number(button.dataset.image), known = thumbnails[row];
  const label = button.dataset.label;
  if (known) button.append(make("img", { src: "data:image/webp;base64," + known, alt: label }));
  else button.append(make("span", { class: "nameless" }, label));
  if (place.has(row)) button.addEventListener("click", () => choose("i" + row));
  else { button.disabled = true; button.title = "not among the images that this page can search"; }
}

function tile(at, note, right) {
  const row = data.images[at];
  const label = data.names[at] + (captionsOf[at].length ? ": " + data.texts[captionsOf[at][0]] : "");
  const button = make("button", { type: "button", "data-image": row, "data-label": label });
  fill(button);
  const text = make("figcaption", null, note);
  if (right) text.append(make("span", { class: "mark" }, " ✓ right"));
  return make("li", null, make("figure", { class: right ? "tile right" : "tile" }, button, text));
}

function caption(at, note, right) {
  const text = make("button", { type: "button", class: "caption", click: () => choose("t" + data.captions[at]) }, data.texts[at] || "(empty)");
  text.append(make("span", { class: "quiet" }, " " + note));
  if (right) text.append(make("span", { class: "mark" }, " ✓ right"));
  return make("li", { class: right ? "right" : null }, text);
}

// [[place, score], ...] of one query's flat list.
const list = flat => Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1] / 1000]);
const score = value => value.toFixed(3);
const section = (title, node) => [make("h3", null, title), node];
const tiles = items => make("ol", { class: "row" }, ...items);
const captions = items => make("ol", { class: "plain" }, ...items);

function showImage(at) {
  field.value = "";
  said.textContent = "Query: image " + data.names[at];
  found.replaceChildren(
    ...section("Query", make("ul", { class: "row query" }, tile(at, data.names[at], false))),
    ...section("Its captions", captions(captionsOf[at].map(i => caption(i, "", false)))),
    ...section("Captions that the model finds (i2t)", captions(list(data.i2t[at]).map(([i, s]) => caption(i, score(s), data.of[i] === at)))),
    ...section("Nearest images (i2i)", tiles(list(data.i2i[at]).map(([i, s]) => tile(i, score(s), false)))));
}

function showCaption(at) {
  field.value = data.texts[at];
  said.textContent = "Query: caption “" + data.texts[at] + "”";
  found.replaceChildren(
    ...section("Images that the model finds (t2i)", tiles(list(data.t2i[at]).map(([i, s]) => tile(i, score(s), data.of[at] === i)))),
    ...section("Nearest captions (t2t)", captions(list(data.t2t[at]).map(([i, s]) => caption(i, score(s), data.of[i] === data.of[at])))),
    ...section("Its own image", tiles([tile(data.of[at], data.names[data.of[at]], true)])));
}

// Words of every caption, and the inverse frequency that weights them.
const wordsOf = text => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
const words = data.texts.map(text => new Set(wordsOf(text)));
const frequency = new Map();
words.forEach(set => set.forEach(word => frequency.set(word, (frequency.get(word) || 0) + 1)));
const vocabulary = [...frequency.keys()];

function matching(text) {
  const scores = new Float64Array(words.length);
  const terms = [...new Set(wordsOf(text))];
  let complete = new Uint8Array(words.length).fill(terms.length ? 1 : 0);
  for (const term of terms) {
    const meant = frequency.has(term) ? [term] : vocabulary.filter(word => word.startsWith(term));
    words.forEach((set, at) => {
      const best = Math.max(0, ...meant.map(word => (set.has(word) ? Math.log(1 + words.length / frequency.get(word)) : 0)));
      scores[at] += best;
      if (!best) complete[at] = 0;
    });
  }
  const all = [...scores.keys()].filter(at => scores[at] > 0);
  const whole = all.filter(at => complete[at]);
  const kept = whole.length ? whole : all;
  return [kept.sort((a, b) => scores[b] / (3 + words[b].size) - scores[a] / (3 + words[a].size) || a - b), whole.length > 0];
}

function showWords(text) {
  const [hits, whole] = matching(text);
  if (!text.trim()) { said.textContent = "Type words, or choose a picture or caption anywhere on the page."; found.replaceChildren(); return; }
  if (!hits.length) { said.textContent = "No caption of the test set has these words."; found.replaceChildren(); return; }
  const votes = new Map();
  // Images that the model finds for the best matching captions, weighted by the captions' place.
  hits.slice(0, 20).forEach((at, order) => list(data.t2i[at]).forEach(([i, s], rank) => {
    votes.set(i, (votes.get(i) || 0) + 1 / (1 + rank) / (1 + order));
  }));
  const own = new Set(hits.map(at => data.of[at]));
  const ranked = [...votes].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 12);
  said.textContent = hits.length + (hits.length === 1 ? " caption has " : " captions have ") + (whole ? "these words" : "some of these words") + "; ranked, the best first.";
  found.replaceChildren(
    ...section("Images that the model finds for them", tiles(ranked.map(([i]) => tile(i, own.has(i) ? "a caption has the words" : data.names[i], false)))),
    ...section("Captions with these words", captions(hits.slice(0, 20).map(at => caption(at, "", false)))));
}

function route() {
  const match = /^#([it])(\d+)$/.exec(location.hash);
  const at = match && (match[1] === "i" ? place : captionPlace).get(Number(match[2]));
  if (match && at !== undefined) (match[1] === "i" ? showImage : showCaption)(at);
}

function choose(name) {
  if (location.hash === "#" + name) route();
  location.hash = name;
  document.getElementById("search").scrollIntoView();
  said.focus({ preventScroll: true });
}

document.querySelectorAll("button[data-image]").forEach(fill);
document.querySelectorAll("button[data-caption]").forEach(button => {
  const row = Number(button.dataset.caption);
  if (captionPlace.has(row)) button.addEventListener("click", () => choose("t" + row));
  else button.disabled = true;
});
field.addEventListener("input", () => { if (location.hash) history.replaceState(null, "", location.pathname + location.search); showWords(field.value); });
document.getElementById("clear").addEventListener("click", () => { field.value = ""; field.dispatchEvent(new Event("input")); field.focus(); });
addEventListener("hashchange", route);

// "/" jumps to the box; arrows move between answers.
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && document.activeElement !== field) { event.preventDefault(); field.focus(); }
  if (event.key === "Escape" && document.activeElement === field) document.getElementById("clear").click();
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const inside = found.contains(document.activeElement);
  if (!step || !(inside || (document.activeElement === field && event.key === "ArrowDown"))) return;
  const buttons = [...found.querySelectorAll("button:not(:disabled)")];
  const next = inside ? buttons[buttons.indexOf(document.activeElement) + step] : buttons[0];
  if (next) { event.preventDefault(); next.focus(); } else if (inside && step < 0) { event.preventDefault(); field.focus(); }
});

const theme = document.getElementById("theme"), root = document.documentElement;
const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
const name = () => { theme.textContent = dark() ? "Light colours" : "Dark colours"; };
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
name();
if (location.hash) route(); else showWords("");
unfold();
