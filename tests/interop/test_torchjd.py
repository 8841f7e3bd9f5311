import pytest
import torch

from frechet.interop import dual_cone_projector
from frechet.train import upgrad


def test_torchjd_with_our_projector_is_exact_where_its_own_is_not():
    aggregation = pytest.importorskip("torchjd.aggregation")
    torch.manual_seed(0)
    g = torch.randn(20, dtype=torch.float64)
    J = torch.stack([g, 1e-3 * (-g + 0.3 * torch.randn(20, dtype=torch.float64))])
    update = aggregation.UPGrad(projector=dual_cone_projector())(J)
    torch.testing.assert_close(update, J.T @ upgrad(J @ J.T))
    assert float((J @ update / J.norm(dim=1) / update.norm()).min()) >= -1e-7


def test_without_torchjd_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchjd.linalg", None)
    with pytest.raises(ImportError, match=r"TorchJD 0\.18 or newer must be installed"):
        dual_cone_projector()
