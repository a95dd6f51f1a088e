"""Pairs of an activation and a dropout in an existing model, run in one kernel each way.

Calls change, modules stay. In a method such as `return self.drop(self.act(x))` both calls go through a
`Calls` object, which puts the first off until the second. With both at hand it looks at exact types or known
functions, hooks, the training flag, p, and the input. If a kernel can do the same, it runs. If not, the two
calls run as they were written, in their order. The forward of `nn.Sequential` is such a method too.

How does a class get other code for some of its instances? A stand-in class changes `type(module)`, which
other tools read, and change as well. A method on the instance calls the wrong instance in shallow copies and
replicas. So neither: the function that the class has gets other code (`function.__code__`). Function, class,
signature, closure and decorators stay the same objects. The new code first asks whether `self` is
fused. If it isn't, the old body runs, so other instances compute what they did.

Where does an instance say that it is fused? In the set of names of its buffers that aren't stored. Copies,
pickles and replicas carry that set along, and models leave it alone. It becomes a set with one attribute
more, equal to the old one. A loaded module brings the changes of its classes' code with it.

Only source can tell that a result is used once, with nothing between the two calls that could see or change
it. Source is believed only if it compiles to the code that runs.

Arrows run one way: api -> survey -> rewrite -> source, dataflow, pair -> recognise -> the rest of the
package, with halves beside recognise.
"""

from .api import fuse, fusion_report, places, unfuse
from .report import FusionReport, Pair
from .survey import Place

__all__ = ["FusionReport", "Pair", "Place", "fuse", "fusion_report", "places", "unfuse"]
