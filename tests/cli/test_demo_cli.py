"""`seq2chat demo` on a line that is finished."""

import json

import pytest

from seq2chat.alignment.pipeline import STAGES
from seq2chat.cli.demo import demo


@pytest.mark.parametrize("serve", [True, False])
def test_a_finished_demo_only_serves_the_page(tmp_path, monkeypatch, capsys, serve):
    """The page starts with the last model."""
    served = []
    monkeypatch.setattr(
        "seq2chat.cli.serve.serve", lambda *runs, port: served.append([run.name for run in runs])
    )
    (tmp_path / "stages.json").write_text(json.dumps({stage.name: 1.0 for stage in STAGES}))
    shares = {name: {"rate": 0.8} for name in ("right", "honest", "harm")}
    report = {"headlines": dict.fromkeys(("base", "sft", "ppo", "always wrong"), shares)}
    (tmp_path / "report.json").write_text(json.dumps(report))
    demo(out=tmp_path, serve=serve)
    # Whose page begins with the aligned model.
    assert served == ([[tmp_path.name]] if serve else [])
    printed = capsys.readouterr().err
    assert "base: 80% of the answerable questions right" in printed
    assert "always wrong" not in printed


def test_a_report_of_an_older_exam_is_shown_as_such(tmp_path, capsys):
    (tmp_path / "stages.json").write_text(json.dumps({stage.name: 1.0 for stage in STAGES}))
    (tmp_path / "report.json").write_text(json.dumps({"gold": {"base": 0.5}}))
    demo(out=tmp_path, serve=False)
    assert "was made by an older version" in " ".join(capsys.readouterr().err.split())
