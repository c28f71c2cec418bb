from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cradled.daemon import reload
from cradled.daemon.config import Cgroup, Config, ConfigError, Debug
from cradled.daemon.config_check import Problem


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, which a reload sets up anew; as it was afterwards."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    capturing = logging.getLogger("cradled.daemon.reload")
    capturing.addHandler(caplog.handler)
    yield caplog
    capturing.removeHandler(caplog.handler)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


def test_the_log_changes_and_all_else_is_told(log: pytest.LogCaptureFixture) -> None:
    fresh = Config(
        root="/new",
        debug=Debug("debug", "json"),
        cgroup=Cgroup("/x"),
        plugins={"a.b": {"c": 1, "d": 2}, "e": {}},
    )
    before = Config(plugins={"a.b": {"c": 1, "d": 3}})
    problems = [Problem("note", "so"), Problem("warning", "such")]
    after = reload.reload(before, lambda: (fresh, problems))
    assert after == before._replace(debug=fresh.debug)
    assert logging.getLogger().level == logging.DEBUG
    told = {record.getMessage(): record for record in log.records}
    fields = told["only a restart brings what changed"].__dict__["fields"]
    assert fields == {"keys": ["cgroup.path", 'plugins."a.b".d', "plugins.e", "root"]}
    assert told["so"].levelno == logging.INFO
    assert told["such"].levelno == logging.WARNING


def test_what_cannot_be_used_changes_nothing(log: pytest.LogCaptureFixture) -> None:
    def read() -> tuple[Config, list[Problem]]:
        raise ConfigError("no use")

    before = Config()
    level = logging.getLogger().level
    assert reload.reload(before, read) is before
    assert logging.getLogger().level == level
    assert "the configuration stays as it was: no use" in log.text


def test_nothing_changed_nothing_said(log: pytest.LogCaptureFixture) -> None:
    assert reload.reload(Config(), lambda: (Config(), [])) == Config()
    assert [record.getMessage() for record in log.records] == ["the configuration was read again"]
