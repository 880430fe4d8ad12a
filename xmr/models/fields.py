"""Fields of a run that pretrained towers need: how images are cropped, and what is trained."""

from xmr.fields import field

TOWERS = {
  "shard_params": field(
    False,
    "parameters and optimiser in parts over the devices, whole where they are used; equal numbers",
    resumable=True,
  ),
  "batch_chunks": field(
    1,
    "parts in which a batch is encoded, with the memory of one of them; the loss is of the whole",
    at_least=1,
    at_most=2**20,
  ),
  "data.fit": field(
    "crop",
    "of evaluation: crop (torchvision's centre), crop_floor (Hugging Face's), stretch (SigLIP)",
    choices="xmr.data.images.FITS",
  ),
  "data.interpolation": field(
    "bilinear", "of resized images", choices="xmr.data.images.INTERPOLATIONS"
  ),
  "data.prompt": field("", 'words around a caption, "a photo of {}"; for towers with a tokenizer'),
  "vocabulary.tokenizer": field(
    "", "folder with a tokenizer.json, whose sub-words stand in place of words"
  ),
  "model.lora.rank": field(
    0, "of low-rank adapters, which alone are trained; 0: none", at_least=0, at_most=65536
  ),
  "model.lora.alpha": field(16.0, "an adapter is alpha / rank times A B", above=0, at_most=1e6),
  "model.lora.kernels": field(
    "/(query|value)/kernel", "regular expression of adapted kernels' paths"
  ),
  "optimizer.layer_decay": field(
    1.0, "factor of the learning rate per block from a tower's output down", above=0, at_most=1
  ),
  "evaluate.ema": field(
    0.0,
    "decay of an average of the weights, which is scored and saved; 0: none",
    at_least=0,
    below=1,
  ),
  "evaluate.wise": field(
    (),
    "also score (1 - a) config.init + a this run, weight by weight, for each a of these: "
    "(0, 0.25, 0.5, 0.75, 1) (WiSE-FT)",
    at_least=0,
    at_most=1,
    resumable=True,
  ),
}
