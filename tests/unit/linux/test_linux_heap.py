"""Functions that were put side by side do what they did, and lie side by side.

In an interpreter of its own: it changes what this one runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLAYED = '''
import functools

FACTOR = 3

class Base:
    def __init__(self, start):
        self.start = start

    def grow(self, by=2, *, twice=False):
        """A word about it."""
        return self.start + by * (2 if twice else 1)

class Played(Base):
    def __init__(self):
        super().__init__(5)
        self.log = []

    @property
    def size(self):
        return len(self.log)

    async def told(self):
        return [name for name in (self.name(), "other")]

    def name(self):
        return "a name"

def adder(number):
    def add(other):
        return number + other + FACTOR
    return add

def never():
    return "nobody comes here"

def play():
    played = Played()
    played.log.append(played.grow(twice=True))
    coroutine = played.told()
    try:
        coroutine.send(None)
    except StopIteration as end:
        played.log.append(end.value)
    return played.log, played.size, adder(1)(2), functools.reduce(max, [1, 3, 2])
'''

PROGRAM = """
import sys
from cradled.linux import heap
import played

functions = lambda: [played.play, played.adder, played.Base.grow, played.Played.told,
                     played.Played.__init__, played.Played.name]
before, first = functions(), played.play()
unused, kept = played.never, played.Played.size
codes = heap.executed(played.play)
assert played.never.__code__ not in codes and played.play.__code__ in codes
fillers = [[bytes(300) for _ in range(400)] for _ in range(4)]
del fillers[::2]
heap.gather(codes)
after = functions()
assert played.play() == first == ([9, ["a name", "other"]], 2, 6, 3), played.play()
assert not {id(f) for f in before} & {id(f) for f in after}
assert not {id(f.__code__) for f in before} & {id(f.__code__) for f in after}
assert played.never is unused and played.Played.size is kept
for old, new in zip(before, after):
    assert (old.__name__, old.__qualname__, old.__module__, old.__doc__, old.__defaults__) == (
        new.__name__, new.__qualname__, new.__module__, new.__doc__, new.__defaults__)
    assert old.__name__ is not new.__name__
spread = lambda fs: max(map(id, fs)) - min(map(id, fs))
assert spread(after) < 4096, spread(after)
heap.freeze()
made = [[bytes(size - 33) for _ in range(8)] for size in (64, 128, 256)]
for few in made:
    assert spread(few) < 4096, spread(few)
assert played.play() == first
"""


def test_gathering(tmp_path: Path) -> None:
    (tmp_path / "played.py").write_text(PLAYED)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_play_that_fails_leaves_no_trace() -> None:
    program = """
import sys
from cradled.linux import heap
try:
    heap.executed(lambda: 1 / 0)
except ZeroDivisionError:
    assert sys.getprofile() is None
    print("raised")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("raised\n", "")
