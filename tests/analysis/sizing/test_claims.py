"""Published claims against physics."""

from pathlib import Path

from analysis.sizing.claims import check_claims, read_claims
from testing.inputs.model_configs import LLAMA31_8B
from testing.inputs.planned import config_file
from testing.processes import ROOT

EXAMPLES = ROOT / "docs" / "examples" / "claim"


CLAIM = EXAMPLES / "two-small-models-on-a-t4.toml"


def test_the_reference_comparison_is_checked_row_by_row() -> None:
    verdicts = {(one.model, one.figure): one for one in check_claims(read_claims(CLAIM))}
    peak = verdicts["Qwen3-1.7B", "peak VRAM"]
    assert peak.verdict == "impossible"
    assert "bare weights" in peak.why
    assert verdicts["Qwen2-1.8B", "peak VRAM"].verdict == "impossible"
    assert verdicts["Qwen3-1.7B", "maximum concurrency"].verdict == "impossible"
    assert verdicts["Qwen2-1.8B", "maximum concurrency"].verdict == "consistent"
    assert verdicts["Qwen3-1.7B", "decode rate"].verdict == "consistent"
    assert "at most 93 tokens/s" in verdicts["Qwen3-1.7B", "decode rate"].why
    assert "at most 105 tokens/s" in verdicts["Qwen2-1.8B", "decode rate"].why
    both = "Qwen2-1.8B, Qwen3-1.7B"
    assert verdicts[both, "maximum concurrency, both"].verdict == "impossible"
    assert "opposite" in verdicts[both, "order of decode rates"].why
    assert verdicts["Qwen3-1.7B", "time to first token"].verdict == "cannot be told"
    assert verdicts["Qwen3-1.7B", "context"].verdict == "consistent"


def test_physics_forbids_what_it_must(tmp_path: Path) -> None:
    config_file(tmp_path, LLAMA31_8B)
    claims = tmp_path / "claims.toml"
    claims.write_text(
        '[[claim]]\nmodel = "Llama"\nconfig = "config.json"\ngpu = "H100"\ncontext = 8192\n'
        "prompt_tokens = 8000\n"
        "decode_tok_s = 400\nttft_ms = 20\nmax_concurrency = 55\npeak_vram_gb = 200\n"
    )
    verdicts = {one.figure: one.verdict for one in check_claims(read_claims(claims))}
    assert verdicts == {
        "peak VRAM": "impossible",
        "context": "consistent",
        "maximum concurrency": "consistent",
        "decode rate": "impossible",
        "time to first token": "impossible",
    }
