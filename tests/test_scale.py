"""The page on large runs says what the committed measurements say."""

from benchmarks.scale import CELLS, PAGE, WORKERS, page, tables


def test_the_page_of_scale_holds_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.scale page"


def test_it_is_about_what_it_says() -> None:
    assert (WORKERS, CELLS) == (64, 1_000_000)
    assert "10⁶ cells" in tables() and "64 workers" in tables()
