"""Lightning's own Trainer on devicekit's accelerator."""

from __future__ import annotations

from tests.hosts.conftest import Process, installed

FIT = """
import lightning.pytorch as pl, torch
from lightning.pytorch.accelerators import AcceleratorRegistry
assert "devicekit" not in AcceleratorRegistry
import devicekit_lightning
devicekit_lightning.register()
devicekit_lightning.register()

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
        self.losses, self.devices = [], set()
    def training_step(self, batch, index):
        loss = self.layer(batch).pow(2).mean()
        self.losses.append(loss.item())
        self.devices.add(batch.device.type)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

model = Model()
options = dict(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, devices=1)
trainer = pl.Trainer(accelerator="devicekit", strategy="devicekit", **options)
trainer.fit(model, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=4))
assert model.losses[-1] < model.losses[0]
print(sorted(model.devices), type(trainer.accelerator).__name__)
"""

ELSEWHERE = """
import lightning.pytorch as pl
import devicekit_lightning
devicekit_lightning.register()
trainer = pl.Trainer(accelerator="devicekit", logger=False, devices=1)
try:
    trainer.strategy.setup_environment()
    print("set up on", trainer.strategy.root_device)
except Exception as error:
    print(type(error).__name__, error)
"""


@installed("lightning")
def test_a_trainer_fits_on_any_device(run: Process) -> None:
    assert run(FIT) == f"['{run.backend}'] DevicekitAccelerator"


@installed("lightning")
def test_nothing_is_trained_elsewhere_in_silence(run: Process) -> None:
    said = run(ELSEWHERE)
    if run.backend == "cpu":
        assert said == "set up on cpu"
    else:
        assert said.startswith("MisconfigurationException")
        assert 'strategy="devicekit"' in said
