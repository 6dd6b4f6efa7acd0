from __future__ import annotations

import pytest

from polypod.workers.events import Log
from polypod.workers.output import BURST, LINES_PER_S, MAX_LINE, Output


def feed(output: Output, *pieces: bytes, now: float = 0) -> list[str]:
    return [log.line for piece in pieces for log in output.feed(piece, now)]


def test_lines_end_at_newline_and_carriage_return_in_pieces_of_any_size() -> None:
    text = "eins\r\nzwei\rdrei\n\n  \nvïer\n".encode()
    whole = feed(Output(), text)
    assert whole == ["eins", "zwei", "drei", "vïer"]
    assert feed(Output(), *(bytes([byte]) for byte in text)) == whole


def test_what_has_no_line_break_is_told_at_the_end() -> None:
    output = Output()
    assert feed(output, b"almost") == []
    assert [log.line for log in output.end()] == ["almost"]
    assert list(output.end()) == []


def test_lines_are_text_that_any_database_takes() -> None:
    assert feed(Output(), b"a\x00b \xff\x1b[1;31mred\x1b[0m\x07\tz\n") == ["ab \ufffdred\tz"]


def test_a_long_line_is_cut_and_keeps_no_memory() -> None:
    output = Output()
    for _ in range(100):
        assert feed(output, b"x" * 100_000) == []
    (line,) = feed(output, b"\n")
    assert line == "x" * MAX_LINE + "…"
    assert feed(output, b"next\n") == ["next"]


def test_marks_say_whose_lines_follow_also_in_two_pieces() -> None:
    output = Output()
    told = [
        *output.feed(b"loading\npart", 0),
        *output.feed(b"\n\x1e", 0),
        *output.end(),
        *output.feed(b"one\nfirst\n\n\x1etwo\nsecond\n", 0),
    ]
    assert told == [
        Log(None, "loading"),
        Log(None, "part"),
        Log("one", "first"),
        Log("two", "second"),
    ]


def test_the_end_of_a_task_leaves_alone_what_the_next_one_prints() -> None:
    output = Output()
    told = [
        *output.feed(b"\x1eone\nfirst\n\n\x1etwo\nsec", 0),
        *output.end("one"),
        *output.feed(b"ond\nthi", 0),
        *output.end("two"),
    ]
    assert told == [Log("one", "first"), Log("two", "second"), Log("two", "thi")]


def test_a_flood_is_thinned_and_how_much_is_told() -> None:
    output = Output()
    many = b"".join(b"%d\n" % number for number in range(BURST + 1000))
    assert feed(output, many) == [str(number) for number in range(BURST)]
    assert feed(output, b"a\nb\n", now=1 / LINES_PER_S) == ["[1000 lines left out]", "a"]
    assert [log.line for log in output.end()] == ["[1 lines left out]"]
    assert len(feed(output, many, now=1000)) == BURST


def test_last_words_are_the_last_lines_told_or_not() -> None:
    output = Output()
    feed(output, b"".join(b"%d\n" % number for number in range(BURST + 1000)))
    assert output.last_words.split("\n") == [str(n) for n in range(BURST + 980, BURST + 1000)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("saved to /data/work/j1/out/a.obj", "saved to {work}/j1/out/a.obj"),
        ("['/data/x', '/data']", "['{data}/x', '{data}']"),
        ("in /data.", "in {data}."),
        ("file:///data/x -I/root/inc", "file://{data}/x -I~/inc"),
        ("/database /data.old", "/database /data.old"),
        ("/opt/data/x s3://b/data/x", "/opt/data/x s3://b/data/x"),
        ("step 3/5 of shape (4, 3)", "step 3/5 of shape (4, 3)"),
    ],
)
def test_paths_of_this_machine_are_shown_by_name(line: str, told: str) -> None:
    output = Output({"/data": "{data}", "/data/work": "{work}", "/root": "~", "/": "{none}"})
    assert feed(output, f"{line}\n".encode()) == [told]


def test_last_words_name_no_folders() -> None:
    output = Output()
    feed(output, b'  File "/opt/a b/model.py", line 3\nno /opt/x/y.ckpt here, 3/4 done\n')
    assert output.last_words == '  File "model.py", line 3\nno y.ckpt here, 3/4 done'
