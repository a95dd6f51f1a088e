"""PTX on the CPU: each kernel becomes a C function of one thread, which gcc compiles.

    library = Module(text).build(folder)

An instruction that isn't covered raises `UnsupportedError` with its name. The order of memory accesses,
races, warps without convergence, and textures aren't modelled. `arithmetic` lists the instructions that
aren't bit-exact.
"""

from .kinds import UnsupportedError as UnsupportedError
from .module import Module as Module
