"""Every random number has an owner: ImageNoise, keyed generators, and the ban on ownerless draws in the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kotoe.errors import UserError
from kotoe.rng import ImageNoise, generator, initialising, keyed_generator

SHAPE = (4, 5, 3)


def test_t12_image_i_of_a_batch_is_image_i_alone() -> None:
    batch = ImageNoise((7, 8, 9), SHAPE)
    alone = ImageNoise((8,), SHAPE)
    assert torch.equal(batch.initial()[1:2], alone.initial())
    for i in range(3):
        assert torch.equal(batch(i)[1:2], alone(i))
    assert not torch.equal(batch(0)[0], batch(0)[1])


def test_the_draws_are_those_of_a_plain_generator() -> None:
    """A seed means in Kotoe what it means to a user of diffusers with a list of generators."""
    noise = ImageNoise((3, 4), SHAPE)
    plain = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    for ours in (noise.initial(), noise(0), noise(1)):
        theirs = torch.cat([torch.randn((1, *SHAPE), generator=g) for g in plain])
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=8))
def test_any_order_of_asking_gives_the_same_draws(order: list[int]) -> None:
    expected = ImageNoise((5,), (2, 2, 2))
    table = {-1: expected.initial(), **{i: expected(i) for i in range(7)}}
    noise = ImageNoise((5,), (2, 2, 2))
    for i in order:
        assert torch.equal(noise.initial() if i == -1 else noise(i), table[i])


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(UserError, match="step -1"):
        ImageNoise((1,), SHAPE)(-1)


def test_seeds_that_torch_would_cut_are_refused() -> None:
    """The reason first: torch reads 32 bits."""
    cut = torch.randn(4, generator=torch.Generator().manual_seed(7 + 2**32))
    assert torch.equal(cut, torch.randn(4, generator=torch.Generator().manual_seed(7)))
    for seed in (-1, 2**32, 7 + 2**32):
        with pytest.raises(UserError, match=r"Allowed: 0 to 4294967295"):
            ImageNoise((1, seed), SHAPE)
    assert not torch.equal(
        torch.randn(4, generator=generator(2**32 - 1)), torch.randn(4, generator=generator(2**31 - 1))
    )


def test_keyed_generators_depend_on_the_whole_key_and_on_nothing_else() -> None:
    draws = {
        key: torch.randn(6, generator=keyed_generator(*key)).tolist()
        for key in [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 10), (11, 0), ("1", 0, 0)]
    }
    assert len({tuple(d) for d in draws.values()}) == len(draws)
    assert torch.randn(6, generator=keyed_generator(1, 0, 1)).tolist() == draws[1, 0, 1]
    assert keyed_generator(1, 2, 3).initial_seed() == 3922471037  # not Python's hash: the same in every process


def test_initialising_seeds_layers_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    with initialising(4):
        first = torch.nn.Linear(3, 3).weight
    assert torch.equal(torch.random.get_rng_state(), before)
    with initialising(4):
        assert torch.equal(torch.nn.Linear(3, 3).weight, first)
    with initialising(5):
        assert not torch.equal(torch.nn.Linear(3, 3).weight, first)


# The ban

DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_"}
NEVER = {"manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"}
NEVER |= {"rand_like", "randn_like", "randint_like"}  # they take no generator
GLOBAL = {"np.random": {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox"}, "random": {"Random"}}


def ownerless(source: str) -> list[str]:
    """Calls that seed or draw from a generator nobody passed, as 'line: call'."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            allowed = GLOBAL["np.random"] | GLOBAL["random"]
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name not in allowed]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        owned = any(k.arg == "generator" or k.arg is None for k in node.keywords)
        of_torch = owner in ("torch", "torch.random", "torch.cuda", "torch.mps")
        method = owner != "" and not of_torch and owner.replace("numpy", "np") not in GLOBAL
        if (of_torch and name in NEVER) or (not owner and name in NEVER - {"seed"}):
            found.append(f"{node.lineno}: {called}")
        elif (of_torch or not owner) and name in DRAWS and not owned:
            found.append(f"{node.lineno}: {called} without generator")
        elif method and name in IN_PLACE and not owned and not owner.endswith("init"):
            found.append(f"{node.lineno}: {called} without generator")
        elif owner.replace("numpy", "np") in GLOBAL and name not in GLOBAL[owner.replace("numpy", "np")]:
            found.append(f"{node.lineno}: {called}")
        elif called in ("random.Random", "np.random.default_rng", "numpy.random.default_rng") and not node.args:
            found.append(f"{node.lineno}: {called} without a seed")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "from torch import manual_seed\nmanual_seed(0)",
        "x = torch.randn(3)",
        "x = torch.randn_like(y)",
        "x = torch.randint(0, 3, (2,), device='cpu')",
        "x = torch.empty(3).normal_()",
        "self.weight.uniform_(-1, 1)",
        "np.random.rand(3)",
        "numpy.random.seed(0)",
        "rng = np.random.default_rng()",
        "import random\nrandom.shuffle(x)",
        "from random import shuffle",
        "random.Random()",
    ],
)
def test_the_ban_sees(source: str) -> None:
    assert ownerless(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = torch.randn(3, generator=g)",
        "g.manual_seed(3)",
        "x = torch.empty(3).normal_(generator=g)",
        "rng = np.random.default_rng(3)\nrng.normal(0, 1)",
        "rng = random.Random(3)\nrng.shuffle(x)",
        "nn.init.normal_(weight)",
        "self.normal(x)",
    ],
)
def test_the_ban_lets_through(source: str) -> None:
    """nn.init is left to `initialising`: layers initialise themselves as they're built."""
    assert ownerless(source) == []


def test_no_ownerless_randomness_in_source_or_recipes(root: Path) -> None:
    files = [f for folder in ("src", "recipes", "benchmarks") for f in sorted((root / folder).rglob("*.py"))]
    assert len(files) > 5
    found = [
        f"{file.relative_to(root)}:{call}"
        for file in files
        if file.relative_to(root) != Path("src/kotoe/rng.py")
        for call in ownerless(file.read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(found)
