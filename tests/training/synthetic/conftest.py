import pytest

from phiscope.training.synthetic import Sample, SyntheticOptions, generate

COUNT = 12000


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Samples of all kinds, from which no test takes any away."""
    return list(generate(SyntheticOptions(), 0, COUNT))


@pytest.fixture(scope="session")
def by_kind(samples) -> dict[str, list[Sample]]:
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    return kinds
