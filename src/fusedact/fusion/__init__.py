"""Pairs of an activation and a dropout in an existing model, run in one kernel each way.

Calls change, modules stay. In a method like `return self.drop(self.act(x))` both calls go through an object of ours,
which puts the first off until the second. With both at hand it decides, with what is there then: exact types or
known functions, no hooks, this training flag, this p, an input that the kernels take. If all holds, one kernel
runs; if not, the two calls run as they were written, in their order. `nn.Sequential` is such a method too.

Two questions had to be answered. How does a class get other code for some of its instances? A stand-in class
changes `type(module)`, which other tools read and change as well; a method on the instance is lost, or calls the
wrong instance, in shallow copies and replicas. So neither: the function that the class has gets other code
(`function.__code__`). Function, class, signature, closures and decorators stay the same objects. The new code begins
with a look whether `self` is fused. If it isn't, the old body runs; so other instances compute what they did.

And where does an instance say that it is fused? In the one object of every module that copies, pickles and replicas
carry along, and that models leave alone: the set of names of its buffers that aren't stored. It becomes a set with one
attribute more, equal to the old one. A loaded module brings the changes of its classes' code with it.

What only source can tell is read from it: that a result is used once, with nothing between the two calls that could
see or change it. Source is believed only if it compiles to the code that runs.

Arrows run one way: api -> survey -> rewrite, resolve -> source, dataflow, pair -> recognise -> the package's rows.
"""

from .api import Place, fuse, fusion_report, places, unfuse
from .report import FusionReport, Pair

__all__ = ["FusionReport", "Pair", "Place", "fuse", "fusion_report", "places", "unfuse"]
