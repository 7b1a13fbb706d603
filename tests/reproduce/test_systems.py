import importlib
from pathlib import Path

import pytest

from atoll.errors import InvalidConfig
from atoll.reproduce.systems import SYSTEMS, System, by_slug, table_markdown

# A copy of its own, so that none is lost or renamed by accident.
SLUGS = [
    "pccl",
    "flow-splitting",
    "moe-inference-survey",
    "burstgpt",
    "dadao",
    "elasticmoe",
    "sequential-gradient-coding",
    "comet",
    "jitserve",
    "decentralized-diffusion",
    "c4",
    "ordinary-node",
    "lifl",
    "com-ddpg",
    "vanishing-variance",
    "flag-aggregator",
    "infinite-llm",
    "llumnix",
    "tokenweave",
    "priority-packing",
    "agent-protocols-survey",
    "one-byte",
    "semi-pd",
    "fsmoe",
    "cloud-load-balancing",
    "selforg",
    "janus",
    "single-merging",
    "universal-checkpointing",
    "commformer",
    "exflow",
    "llm-routing",
    "xllm",
    "distserve",
    "agent-interop",
    "co2",
    "fedcompass",
    "streaming-diloco",
    "tokenring",
    "duo-llm",
    "dfedsam",
    "semantic-cache",
    "personalized-pagerank",
    "t3",
    "g-rank",
    "elaswave",
    "ai-flow",
    "fedfix",
    "speculative-moe",
]


def test_the_forty_nine_systems_are_all_here_once() -> None:
    assert len(SLUGS) == 49
    assert [system.slug for system in SYSTEMS] == SLUGS


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s.status != "planned"], ids=lambda system: system.slug)
def test_what_is_built_can_be_imported(system: System) -> None:
    importlib.import_module(system.module)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)
def test_a_module_stands_in_one_of_its_rooms(system: System) -> None:
    if system.module:
        package, room, *_ = system.module.split(".")
        assert package == "atoll"
        assert room in system.room.split(" + ")


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)
def test_each_says_what_it_gives_in_one_sentence(system: System) -> None:
    assert system.what.endswith(".")
    assert "\n" not in system.what
    assert 40 < len(system.what) <= 130


def test_a_system_is_found_by_its_slug() -> None:
    assert by_slug("llumnix").title.startswith("Llumnix: ")
    assert [by_slug(slug).slug for slug in SLUGS] == SLUGS


@pytest.mark.parametrize(("wrong", "meant"), [("pcl", "pccl"), ("steaming-diloco", "streaming-diloco"), ("T3", "t3")])
def test_a_wrong_slug_names_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(InvalidConfig, match=f"unknown system '{wrong}'; the nearest is '{meant}'"):
        by_slug(wrong)


def test_anything_at_all_gets_an_answer() -> None:
    with pytest.raises(InvalidConfig, match="atoll systems"):
        by_slug("")


def test_the_table_has_a_row_for_each_with_five_cells() -> None:
    header, rule, *rows = table_markdown().splitlines()
    assert header == "| system | gives | room | module | status |"
    assert rule == "|---|---|---|---|---|"
    for row, slug in zip(rows, SLUGS, strict=True):
        cells = row.strip("| ").split(" | ")
        assert cells[0].startswith(f"**{slug}**<br>")
        assert cells[-1] == by_slug(slug).status
        assert row.count("|") == 6


def test_the_page_has_this_table() -> None:
    assert table_markdown() in (Path(__file__).parents[2] / "docs" / "systems.md").read_text() + "\n"
