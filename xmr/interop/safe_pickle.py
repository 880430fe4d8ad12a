"""The plain data in a pickle, without unpickling: no class is looked up, no function is called."""

from pickletools import genops

from xmr.errors import UserError

_RECONSTRUCTORS = ("copyreg _reconstructor", "copy_reg _reconstructor")
_BASES = ("builtins object", "__builtin__ object")
_MARK = object()


class _Name(str):
  """A class that the pickle mentions, "module name"; never imported."""


class _Reader:
  """A stack machine for the few instructions that build dictionaries, lists, strings, numbers and
  bare objects.
  """

  def __init__(self, classes):
    self.classes = classes
    self.stack = []
    self.memo = {}

  def run(self, data):
    """The object that the pickle describes; ValueError where it holds more than plain data."""
    for instruction, argument, _ in genops(data):
      name = instruction.name
      if name == "STOP":
        return self.stack.pop()
      self.step(name, argument)
    raise ValueError("it ends early")

  def step(self, name, argument):
    """Carries out one instruction."""
    if name in ("PROTO", "FRAME"):
      return
    if name in _CONSTANTS:
      self.stack.append(_CONSTANTS[name]())
    elif name in _LITERALS:
      self.stack.append(argument)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
      self.memo[int(argument)] = self.stack[-1]
    elif name == "MEMOIZE":
      self.memo[len(self.memo)] = self.stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      self.stack.append(self.memo[int(argument)])
    elif name in _ACTIONS:
      _ACTIONS[name](self, argument)
    else:
      raise ValueError(f"it holds the instruction {name}, which plain data needs not")

  def since_mark(self):
    """Pops everything above the last mark off the stack."""
    for index in range(len(self.stack) - 1, -1, -1):
      if self.stack[index] is _MARK:
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items
    raise ValueError("a mark is missing")

  def set_items(self, items):
    """Adds alternating keys and values to the dictionary on top of the stack."""
    if len(items) % 2 or not isinstance(self.stack[-1], dict):
      raise ValueError("an entry has no dictionary")
    self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

  def extend(self, items):
    """Extends the list on top of the stack."""
    if not isinstance(self.stack[-1], list):
      raise ValueError("an item has no list")
    self.stack[-1].extend(items)

  def bare(self, found):
    """A new object of an expected class, as an empty dictionary."""
    if not isinstance(found, _Name) or found.split()[-1] not in self.classes:
      raise ValueError(f"it holds a {found}; expected {' or '.join(self.classes)}")
    self.stack.append({})

  def new(self):
    """An object of protocol 2 and later: a class and no arguments."""
    arguments, found = self.stack.pop(), self.stack.pop()
    if arguments != ():
      raise ValueError(f"{found} is made with arguments")
    self.bare(found)

  def reduce(self):
    """An object of protocols 0 and 1, which is a call; only a call that makes a bare object is
    accepted.
    """
    arguments, found = self.stack.pop(), self.stack.pop()
    if (
      found not in _RECONSTRUCTORS
      or len(arguments) != 3
      or arguments[1] not in _BASES
      or arguments[2] is not None
    ):
      raise ValueError(f"it calls {'.'.join(str(found).split())}")
    self.bare(arguments[0])

  def build(self):
    """Sets an object's attributes."""
    state, target = self.stack.pop(), self.stack[-1]
    if not isinstance(state, dict) or not isinstance(target, dict):
      raise ValueError("an object's attributes are no dictionary")
    target.update(state)

  def named(self):
    """A class named by two strings on the stack."""
    name, module = self.stack.pop(), self.stack.pop()
    self.stack.append(_Name(f"{module} {name}"))


_CONSTANTS = {
  "MARK": lambda: _MARK,
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
}
_LITERALS = {
  "INT",
  "BININT",
  "BININT1",
  "BININT2",
  "LONG",
  "LONG1",
  "FLOAT",
  "BINFLOAT",
  "UNICODE",
  "BINUNICODE",
  "SHORT_BINUNICODE",
  "BINUNICODE8",
  "STRING",
  "BINSTRING",
  "SHORT_BINSTRING",
}
_ACTIONS = {
  "GLOBAL": lambda reader, argument: reader.stack.append(_Name(argument)),
  "STACK_GLOBAL": lambda reader, _: reader.named(),
  "NEWOBJ": lambda reader, _: reader.new(),
  "REDUCE": lambda reader, _: reader.reduce(),
  "BUILD": lambda reader, _: reader.build(),
  "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.since_mark())),
  "TUPLE1": lambda reader, _: reader.stack.append((reader.stack.pop(),)),
  "TUPLE2": lambda reader, _: reader.stack.append((reader.stack.pop(-2), reader.stack.pop())),
  "TUPLE3": lambda reader, _: reader.stack.append(tuple(reader.stack.pop(-k) for k in (3, 2, 1))),
  "LIST": lambda reader, _: reader.stack.append(reader.since_mark()),
  "DICT": lambda reader, _: (lambda items: (reader.stack.append({}), reader.set_items(items)))(
    reader.since_mark()
  ),
  "SETITEM": lambda reader, _: reader.set_items([reader.stack.pop(-2), reader.stack.pop()]),
  "SETITEMS": lambda reader, _: reader.set_items(reader.since_mark()),
  "APPEND": lambda reader, _: reader.extend([reader.stack.pop()]),
  "APPENDS": lambda reader, _: reader.extend(reader.since_mark()),
}


def read(data, *, classes, source):
  """The plain data in a pickle; an object of a known class becomes the dictionary of its
  attributes.

  The pickle's instructions are read one by one (pickletools). They build numbers, strings, lists,
  tuples and dictionaries; a class is only a name, and anything that would call or import something
  is an error.

  Args:
    data: bytes of the file.
    classes: names, without their module, of the classes whose objects may occur.
    source: path, for errors.
  Returns:
    nested dict, list, tuple, str, int, float, bool and None.
  Raises:
    UserError: not a pickle, cut short, or it holds anything else.
  """
  try:
    return _Reader(classes).run(data)
  except Exception as error:  # A damaged or hostile file can make the reader raise anything.
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{source}: no pickle of plain data ({reason}); nothing was executed") from None
