"""PTX on the CPU: each kernel becomes a C function of one thread, which gcc compiles.

    library = Module(text).build(folder)

What isn't covered raises `UnsupportedError`, by its name. Not modelled: the order of memory accesses, races,
warps without convergence, textures. `arithmetic` says which instructions aren't bit-exact.
"""

from .kinds import UnsupportedError as UnsupportedError
from .module import Module as Module
