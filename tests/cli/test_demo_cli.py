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
    (tmp_path / "report.json").write_text(
        json.dumps({"gold": {"base": 0.5, "sft": 0.55, "ppo": 0.6}})
    )
    demo(out=tmp_path, serve=serve)
    # Whose page begins with the aligned model.
    assert served == ([[tmp_path.name]] if serve else [])
    assert "base 0.50, sft 0.55, ppo 0.60" in capsys.readouterr().err
