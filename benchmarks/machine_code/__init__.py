"""Counts of the kernels' machine code, on a machine that needs no GPU.

    python -m benchmarks.machine_code [--target sm_90 ...] [--dtype bfloat16 ...] [--json FILE] ...
    python -m benchmarks.machine_code --peers [--dtype bfloat16 ...] [--json FILE] ...
    python -m benchmarks.machine_code --forms [--activation relu ...] [--json FILE] ...

The first compiles every kernel for every target, as a launch would for dense, 16-byte aligned tensors with a
multiple of 8 elements. It prints a Markdown table per target, and writes the rows as JSON. The second counts
the kernels that `torch.compile` generates for the same pairs. It needs a CUDA device, which may be simulated.
The third counts forms of the forward kernel that were tried and not taken.

`program` defines the count, and `sass` and `amdgcn` read assembly. `roofline` predicts times from counts.
`row` stores a kernel's count. `kernels`, `peers` and `forms` compile, and `tables` prints.
"""
