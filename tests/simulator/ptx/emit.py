"""A kernel as C functions: one thread's, and a launch's, which runs thread after thread, block after block.

Threads of a block run one after the other, up to the next point at which they wait for each other. A kernel
that has such points keeps each thread's registers from one resumption to the next.
"""

import re

from .kernel import Kernel, c_name
from .kinds import bits_of

_LAUNCH = """
void launch_{name}(const uint8_t *P, const uint32_t *grid, const uint32_t *block) {{
  Place t = {{0, 0, 0, block[0], block[1], block[2], 0, 0, 0, grid[0], grid[1], grid[2], 0}};
  uint32_t threads = block[0] * block[1] * block[2];
  for (t.ctaid_z = 0; t.ctaid_z < grid[2]; t.ctaid_z++)
  for (t.ctaid_y = 0; t.ctaid_y < grid[1]; t.ctaid_y++)
  for (t.ctaid_x = grid[3]; t.ctaid_x < grid[4]; t.ctaid_x++) {{{block}
  }}
}}
"""
_EACH_THREAD = """
    for (uint32_t i = 0; i < threads; i++) {{
      t.tid_x = i % block[0]; t.tid_y = i / block[0] % block[1]; t.tid_z = i / block[0] / block[1];
      t.laneid = i % 32;
      {call}
    }}"""


def c_text(kernel: Kernel) -> str:
    return _resumable(kernel) if kernel.waits else _plain(kernel)


def _declarations(kernel: Kernel) -> list[str]:
    kinds = sorted(kernel.registers.items())
    return [f"uint{bits_of(kind)}_t R{c_name(name)};" for name, kind in kinds] + kernel.locals


def _body(kernel: Kernel) -> str:
    return "\n".join(f"  {line}" for line in kernel.lines if line)


def _plain(kernel: Kernel) -> str:
    variables = "\n  ".join(_declarations(kernel))
    block = _EACH_THREAD.format(call=f"{kernel.name}(P, &t);")
    return (
        f"static int {kernel.name}(const uint8_t *P, const Place *t) {{\n  {variables}\n{_body(kernel)}\n"
        f"  return 0;\n}}\n{_LAUNCH.format(name=kernel.name, block=block)}"
    )


def _resumable(kernel: Kernel) -> str:
    """Variables are fields of the thread's state, and each is a macro that names its field."""
    variables = _declarations(kernel)
    names = [re.match(r"\w+ (\w+)", line)[1] for line in variables]
    name, fields = kernel.name, "\n  ".join(variables)
    defined = "".join(f"#define {variable} (s->{variable})\n" for variable in names)
    undefined = "".join(f"#undef {variable}\n" for variable in names)
    jumps = "".join(f" case {i}: goto W{i};" for i in range(1, kernel.waits + 1))
    call = (
        f"if (over[i]) continue;\n      over[i] = !{name}(P, &t, &states_{name}[i], i / 32, exchange);\n"
        "      running += !over[i];"
    )
    block = f"""
    static uint64_t exchange[2][1024];
    uint8_t over[1024] = {{0}};
    memset(states_{name}, 0, sizeof states_{name});
    for (uint32_t running = threads; running;) {{
      running = 0;{_EACH_THREAD.format(call=call)}
    }}"""
    return f"""typedef struct {{
  {fields}
  int resume, turn;
}} State_{name};
static State_{name} states_{name}[1024];
{defined}static int {name}(const uint8_t *P, const Place *t, State_{name} *s, uint32_t warp,
  uint64_t exchange[2][1024]) {{
  int *resume = &s->resume, *turn = &s->turn;
  switch (*resume) {{{jumps} }}
{_body(kernel)}
  return 0;
}}
{undefined}{_LAUNCH.format(name=name, block=block)}"""
