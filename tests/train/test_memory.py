import psutil
import pytest
import torch

from utils import ConfigError, fit
from utils.network.siamese import SiameseNetwork
from utils.train.memory import kept_bytes


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])
def test_kept_bytes_are_those_that_autograd_keeps(name):
    network = SiameseNetwork(name, 8, image_size=(64, 48)).eval()
    own = {values.data_ptr() for values in (*network.parameters(), *network.buffers())}
    own = {values.data_ptr() for values in (*network.parameters(), *network.buffers())}
    kept = {}

    def keep(values):
        if values.data_ptr() not in own:
            kept[values.untyped_storage().data_ptr()] = values.numel() * 4
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        output = network.backbone.forward_features(torch.randn(1, 3, 64, 48))
    assert output.requires_grad
    assert kept_bytes(network, (64, 48)) == pytest.approx(sum(kept.values()), rel=0.05)
    assert kept_bytes(network, (128, 96)) == pytest.approx(4 * kept_bytes(network, (64, 48)), rel=0.1)
    assert kept_bytes(network, (64, 48), torch.bfloat16) * 2 == kept_bytes(network, (64, 48))


def test_a_batch_that_does_not_fit_is_refused_before_training(make_config, monkeypatch, capsys):
    config = make_config()
    available = type("Memory", (), {"available": 10**6})
    monkeypatch.setattr(psutil, "virtual_memory", available)
    said = r"hyperparameters\.batch_size, image\.size: training on 8 images of \[32, 40\] at a time takes"
    with pytest.raises(ConfigError, match=said):
        fit(config)
    assert "Epoch" not in capsys.readouterr().out
