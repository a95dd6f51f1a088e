"""One kernel: its parameters and registers, its operands as C expressions, its statements as C statements.

Registers are raw bits in unsigned C variables of their width. An instruction casts them to its type, as in
PTX itself. Addresses are the host's.
"""

import re
from collections.abc import Callable, Iterator

from .kinds import FLOATS, UnsupportedError, as_integer, bits_of

_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<kind>\w+)\s+"
    r"(?:\.ptr[^%$\w]*(?:\.\w+\s*)*(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)\s*(?:\[(?P<count>\d+)\])?\s*$"
)
_VARIABLE = re.compile(
    r"\.(?P<space>local|shared)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<kind>\w+)\s+"
    r"(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_STATEMENT = re.compile(r"\s*(?:([{}])|([$\w]+)\s*:(?!:)|([^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)")
_OPERAND = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]])+")
_SPECIAL = re.compile(r"%(n?(?:tid|ctaid))\.([xyz])$|%(laneid)$")


def c_name(name: str) -> str:
    return re.sub(r"[^0-9a-zA-Z_]", "_", name)


def elements(vector: str) -> list[str]:
    """The operands of {%r1, %r2}, or the one of %r1."""
    return [part.strip() for part in vector.strip("{}").split(",")]


class Kernel:
    """The translation of one entry.

    Attributes:
        parameters: offset and size of each, in bytes.
        size: of all parameters.
        registers: the type of each that is used.
        locals: C declarations of local memory.
        lines: the body, C statements.
        waits: how many points there are at which threads wait for each other.
    """

    def __init__(
        self,
        name: str,
        parameters: str,
        body: str,
        variables: dict[str, str],
        instructions: dict[str, Callable[..., str]],
    ) -> None:
        self.name = c_name(name)
        self.parameters: list[tuple[int, int]] = []
        self.size = 0
        self.registers: dict[str, str] = {}
        self.locals: list[str] = []
        self.waits = 0
        self._declared: dict[str, str] = {}  # registers' types, by name or by prefix and "<"
        self._addresses = dict(variables)  # of operands other than registers, as C expressions
        self._instructions = instructions
        self._shared = 0
        # Threads that can't see each other's data needn't wait: there no barrier does anything.
        self._exchanges = re.search(r"\bshfl\.|\bredux\.|\.shared\b|matrix\.", body) is not None
        for declaration in filter(str.strip, parameters.split(",")):
            self._parameter(declaration)
        self.lines = list(self._statements(body))

    def _parameter(self, declaration: str) -> None:
        match = _PARAMETER.search(declaration)
        if not match:
            raise UnsupportedError(f"parameter {declaration.strip()}")
        item = bits_of(match["kind"]) // 8
        size, align = item * int(match["count"] or 1), int(match["align"] or item)
        offset = -(-self.size // align) * align
        self.parameters.append((offset, size))
        self._addresses[match["name"]] = f"((uint64_t)(P + {offset}))"
        self.size = offset + size

    # Operands

    def register(self, name: str) -> str:
        """The C variable of a register."""
        kind = self._declared.get(name) or self._declared.get(re.sub(r"\d+$", "<", name))
        if kind is None:
            raise UnsupportedError(f"register {name}")
        self.registers[name] = kind
        return "R" + c_name(name)

    def raw(self, operand: str) -> str:
        """The bits of an operand as an unsigned C value."""
        operand = operand.strip()
        if operand.startswith("!"):
            return f"(!{self.raw(operand[1:])})"
        if match := _SPECIAL.match(operand):
            return f"(t->{match[3] or f'{match[1]}_{match[2]}'})"
        if operand.startswith("%") or operand in self._declared:  # without %: of inline assembly
            return self.register(operand)
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", operand):
            return f"0x{match[1]}{'u' if len(match[1]) == 8 else 'ull'}"
        if match := re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            return f"({match[1]}{match[2]}{'ll' if match[1] else 'ull'})"
        if operand in ("true", "false"):
            return str(int(operand == "true"))
        if operand in self._addresses:
            return self._addresses[operand]
        raise UnsupportedError(f"operand {operand}")

    def get(self, operand: str, kind: str) -> str:
        """The value of an operand as a C expression of the type; of a half as a float."""
        if kind in FLOATS:
            if re.fullmatch(r"-?\d+\.\d*(?:[eE][+-]?\d+)?", operand):
                return f"((double){operand})"
            return f"{kind}({self.raw(operand)})"
        if kind == "pred":
            return f"(({self.raw(operand)}) != 0)"
        return as_integer(kind, self.raw(operand))

    def put(self, register: str, kind: str, value: str) -> str:
        """Assign a C value of the type to a register; into a wider one, a signed value's sign is extended."""
        if register == "_":
            return f"(void)({value});"
        name = self.register(register)
        width = bits_of(self.registers[register])
        if kind == "pred":
            return f"{name} = ({value}) != 0;"
        if kind in FLOATS:
            return f"{name} = to_{kind}({value});"
        if kind[0] == "s" and bits_of(kind) < width:
            return f"{name} = (int{width}_t){as_integer(kind, value)};"
        return f"{name} = {as_integer(kind, value)};"

    def address(self, operand: str) -> str:
        match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand.strip())
        if not match:
            raise UnsupportedError(f"address {operand}")
        return f"({self.raw(match[1])} + {match[2] or 0})"

    # Statements

    def _statements(self, text: str) -> Iterator[str]:
        at = 0
        while text[at:].strip():
            match = _STATEMENT.match(text, at)
            if not match:
                raise UnsupportedError(text[at : at + 80].strip())
            at = match.end()
            brace, label, statement = match.groups()
            if brace:
                yield brace
            elif label:
                yield f"L{c_name(label)}:;"
            elif statement.strip():
                yield self._statement(" ".join(statement.split()))

    def _statement(self, text: str) -> str:
        if match := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text):
            for name in elements(match[2]):
                counted = re.fullmatch(r"(.*)<\d+>", name)
                self._declared[counted[1] + "<" if counted else name] = match[1]
            return ""
        if match := _VARIABLE.fullmatch(text):
            return self._variable(match)
        if re.match(r"\.(loc|pragma|branchtargets)\b", text):
            return ""
        guard = ""
        if match := re.match(r"@(!?)([%\w$]+)\s+", text):
            guard = f"if ({match[1]}{self.raw(match[2])}) "
            text = text[match.end() :]
        code = self._instruction(text)
        return f"{guard}{{ {code} }}" if guard else code

    def _variable(self, match: re.Match[str]) -> str:
        name, size = match["name"], bits_of(match["kind"]) // 8 * int(match["count"] or 1)
        if match["space"] == "local":
            self.locals.append(f"uint8_t V{name}[{size}] __attribute__((aligned({match['align'] or 16})));")
            self._addresses[name] = f"((uint64_t)V{name})"
        else:  # shared memory's addresses begin at 0
            offset = -(-self._shared // 16) * 16
            self._addresses[name] = f"{offset}"
            self._shared = offset + size
        return ""

    def _instruction(self, text: str) -> str:
        opcode, _, rest = text.partition(" ")
        base, *modifiers = opcode.split(".")
        operands = [part.strip() for part in _OPERAND.findall(rest)]
        try:
            if base not in self._instructions:
                raise UnsupportedError(opcode)
            return self._instructions[base](self, modifiers, operands)
        except (UnsupportedError, KeyError, IndexError, ValueError) as error:
            raise UnsupportedError(f"{self.name}: {text} ({error})") from error

    def wait(self) -> str:
        """Add a point at which the threads of a block wait: the function returns, and is resumed there."""
        self.waits += 1
        return f"*resume = {self.waits}; return {self.waits}; W{self.waits}:;"

    def barrier(self) -> str:
        return self.wait() if self._exchanges else ""
