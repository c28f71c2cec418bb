from __future__ import annotations

import json
import logging
import re

import pytest

from cradled import spans
from cradled.daemon import logs


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("cradled.x", level, __file__, 1, message, (), None)
    if fields:
        made.fields = fields
    return made


def test_text_line() -> None:
    line = logs.TextFormatter().format(record('say "hi"\nthere', pid=7, path="/a b"))
    time = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"'
    rest = r' level=info msg="say \\"hi\\"\\nthere" pid=7 path="/a b"'
    assert re.fullmatch(time + rest, line)


def test_json_line() -> None:
    line = logs.JsonFormatter().format(record("hi", logging.WARNING, pid=7))
    values = json.loads(line)
    assert list(values) == ["pid", "level", "msg", "time"]
    assert (values["pid"], values["level"], values["msg"]) == (7, "warning", "hi")


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (logs.TRACE, "trace"),
        (logging.DEBUG, "debug"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "fatal"),
    ],
)
def test_levels_have_the_words_of_the_field(number: int, word: str) -> None:
    assert f"level={word} " in logs.TextFormatter().format(record("x", number))


def test_errors_are_told_with_their_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    made = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), info)
    values = json.loads(logs.JsonFormatter().format(made))
    assert values["error"] == "broken"
    assert "test_daemon_logs.py" in values["trace"]


def test_lines_carry_the_ids_of_what_they_are_written_for() -> None:
    with spans.span("outer") as outer:
        assert "trace_id" not in logs.TextFormatter().format(record("x"))
        line = logs.TextFormatter(trace_ids=True).format(record("x"))
        values = json.loads(logs.JsonFormatter(trace_ids=True).format(record("x")))
    ids = {"trace_id": f"{outer.trace_id:032x}", "span_id": f"{outer.id:016x}"}
    assert {key: values[key] for key in ids} == ids
    assert line.endswith(" ".join(f"{key}={value}" for key, value in ids.items()))
    assert "trace_id" not in logs.TextFormatter(trace_ids=True).format(record("x"))
