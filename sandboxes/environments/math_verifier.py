r"""What the package math-verify says of two answers, asked in a sandbox of its own.

    verifier = MathVerifier(sandbox="local")
    found = await verifier.compare(r"x^2+2x+1", "(x+1)^2")       Compared(same=True)

math-verify reads answers through sympy's parser, which evaluates text: so a sandbox. There nothing can be imported that
was not imported when its worker started, sympy imports much of itself only when it is used, and math-verify takes the
error that follows for "not the same": `PACKAGES` names those parts. **A failure of the judge is no wrong answer**: a part
that is missing all the same, and a sandbox that fails, raise; where the comparison itself breaks or takes more than its
limits `undecided` says why (math-verify counts these as not the same, and so do its scores).

Left out: which answers are compared at all (`math_.py`). Needs the extra `math`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from kintsugi.errors import MissingExtra, missing_extra
from kintsugi.sandboxes.environments.sandboxed import Sandboxed
from kintsugi.sandboxes.sandbox import Limits, Sandbox

PACKAGES: Final = (
    "math_verify",
    # Imported inside functions of sympy, mpmath, antlr4 and math-verify, gone through from one to the next; printers of
    # other languages, plots, codegen and physics' systems aside. The rest is brought by these.
    *(f"antlr4.{name}" for name in ("LL1Analyzer", "ParserInterpreter", "dfa.DFASerializer", "tree.ParseTreeMatch")),
    *(f"sympy.assumptions.{name}" for name in ("facts", "handlers.matrices", "lra_satask", "satask", "wrapper")),
    *(f"sympy.combinatorics.{name}" for name in ("galois", "homomorphisms", "named_groups", "polyhedron", "tensor_can")),
    *(f"sympy.integrals.{name}" for name in ("manualintegrate", "prde")),
    *(f"sympy.logic.algorithms.{name}" for name in ("dpll", "dpll2", "minisat22_wrapper")),
    *(f"sympy.polys.{name}" for name in ("dispersion", "distributedmodules", "numberfields.resolvent_lookup")),
    *(f"sympy.polys.domains.{name}" for name in ("old_polynomialring", "quotientring")),
    *(f"sympy.sets.handlers.{name}" for name in ("add", "functions", "issubset", "mul", "power")),
    *(f"sympy.tensor.{name}" for name in ("tensor", "array.array_derivatives", "array.expressions")),
    *(f"sympy.{name}" for name in ("abc", "concrete.delta", "discrete.recurrences", "physics", "vector")),
    *(f"sympy.{name}" for name in ("solvers.inequalities", "calculus.util", "sets.setexpr")),
)
LIMITS: Final = Limits(cpu_s=5, wall_s=60, memory_mb=512)
"""CPU decides: what is the same must not depend on how busy the machine is."""

_CHECKER: Final = """
import json, logging, sys
logging.disable()
missing, broken = [], []
class Noted:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4"):
            missing.append(name)
sys.meta_path.append(Noted())
from math_verify import parse, verify
gold, answer = (parse(text, parsing_timeout=None) for text in json.load(sys.stdin))
def same(one, other):
    try:
        return verify(one, other, timeout_seconds=None, raise_on_error=True)
    except Exception as error:
        broken.append(type(error).__name__)
        return False
found = any([same(one, other) for one in gold for other in answer])
print(json.dumps({"same": found, "missing": missing, "broken": broken}))
"""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """same: math-verify says so. undecided: why it could not tell ("" where it could); `same` is then False."""

    same: bool
    undecided: str = ""


class MathVerifier(Sandboxed):
    """Asks math-verify. sandbox: as `Sandboxed` has it; an open one must have `PACKAGES`. Of a Docker sandbox, which
    takes no packages, this one's place is taken by the machine's own. Raises MissingExtra where they are not installed."""

    name = "math"

    def __init__(self, sandbox: Sandbox | str | Mapping[str, Any] | None = None) -> None:
        if isinstance(sandbox, str):
            sandbox = {"kind": sandbox}
        if isinstance(sandbox, Mapping) and (sandbox.get("kind") == "docker" or "image" in sandbox):
            sandbox = {key: value for key, value in sandbox.items() if key not in ("kind", "image")}
        super().__init__(sandbox=sandbox, packages=PACKAGES, extra="math")
        if find_spec("math_verify") is None:
            asked = missing_extra('the environment math with equivalence="math-verify"', "math")
            raise MissingExtra(f"{asked}, or set environment.options.equivalence=number")

    async def compare(self, gold: str, answer: str) -> Compared:
        """Whether two pieces of LaTeX are the same answer. Raises RuntimeError when the judge itself fails."""
        texts = json.dumps([f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}"])
        run = await (await self.sandbox()).arun(_CHECKER, stdin=texts, limits=LIMITS)
        last = run.stderr.strip().rpartition("\n")[2][-200:]
        if run.status == "sandbox_failed":
            raise RuntimeError(f"the judge failed, not the answer: the sandbox failed as math-verify was asked: {last}")
        if run.status == "error" and ("ImportError" in last or "ModuleNotFoundError" in last):
            raise RuntimeError(f"the judge failed, not the answer: math-verify cannot be imported in the sandbox: {last}")
        if run.status != "ok":
            return Compared(same=False, undecided=f"math-verify was stopped: {run.status}")
        told = json.loads(run.stdout.strip().rpartition("\n")[2])
        if told["same"]:
            return Compared(same=True)
        if told["missing"]:
            names = ", ".join(sorted(set(told["missing"])))
            raise RuntimeError(f"the judge failed, not the answer: the sandbox lacks {names}, which math-verify needs")
        if told["broken"]:
            return Compared(same=False, undecided=f"math-verify broke off: {', '.join(sorted(set(told['broken'])))}")
        return Compared(same=False)
