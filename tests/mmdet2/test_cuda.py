"""The plugin's head, detector and runner on a GPU beside MMDetection's own."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from batches import CONFIGS, build, nano, train_data
from gpu import counted_waits, needs_gpu, no_waits, on_gpu
from mmcv import Config
from mmcv.parallel import DataContainer, MMDistributedDataParallel
from mmcv.runner import HOOKS, build_optimizer
from mmdet.utils import build_dp
from scenes import batch, predictions
from tiny2 import write_config

from yolox_plugin.core.checkpoint import read_checkpoint
from yolox_plugin.mmdet2.ddp import build_ddp
from yolox_plugin.mmdet2.runner import DeferredLogBuffer
from yolox_plugin.protocol import Moment
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training

pytestmark = needs_gpu
COUNTS = [(0,), (1,), (10,), (200,), (10, 30), (0, 25, 1), (0, 0)]
IDS = {"ids": lambda gts: "-".join(map(str, gts))}


@pytest.fixture
def heads():
    cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py")).model
    return [build(cfg, stock=stock).bbox_head.cuda() for stock in (True, False)]


def losses_and_gradients(head, levels, boxes, labels):
    levels = [[tensor.detach().requires_grad_() for tensor in level] for level in levels]
    losses = head.loss(*levels, boxes, labels, [{}] * len(boxes))
    sum(losses.values()).backward()
    # mmdet's IoU of no boxes is cut off from them: None stands for 0.
    return losses, [torch.zeros_like(t) if t.grad is None else t.grad for level in levels for t in level]


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("lower", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gts", COUNTS, **IDS)
def test_losses_and_their_gradients(heads, gts, lower, use_l1):
    _, boxes, labels = batch(3, gts, 320)
    levels, boxes, labels = on_gpu((predictions(4, boxes, labels, 320), boxes, labels))
    if lower:
        levels = [[tensor.to(lower) for tensor in level] for level in levels]
    results = []
    for head in heads:
        # As mmcv's Fp16OptimizerHook sets it: the head casts float16 to float32. Of bfloat16 mmcv knows nothing.
        head.fp16_enabled, head.use_l1 = lower is torch.float16, use_l1
        given = [[t.float() for t in level] for level in levels] if lower is torch.bfloat16 and not results else levels
        with torch.autocast("cuda", lower, enabled=lower is not None):
            results.append(losses_and_gradients(head, given, boxes, labels))
    (theirs, their_gradients), (ours, our_gradients) = results
    assert list(ours) == list(theirs) == ["loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if use_l1 else [])]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [g.dtype for g in our_gradients] == [lower or torch.float32] * 9
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if lower is None else {"rtol": 1e-2, "atol": 1e-5}
    torch.testing.assert_close(our_gradients, [g.to(lower or g.dtype) for g in their_gradients], **tolerance)


@pytest.mark.parametrize("use_l1", [False, True])
def test_losses_wait_for_nothing(heads, use_l1):
    """Of mmdet's, each gt does."""
    _, boxes, labels = batch(3, (10, 30, 0), 320)
    levels, boxes, labels = on_gpu((predictions(4, boxes, labels, 320), boxes, labels))
    for head in heads:
        head.use_l1 = use_l1
        losses_and_gradients(head, levels, boxes, labels)  # what is remembered is made once
    with no_waits():
        losses_and_gradients(heads[1], levels, boxes, labels)
    with counted_waits() as waits:
        losses_and_gradients(heads[0], levels, boxes, labels)
    assert len(waits) > 40


@pytest.mark.parametrize("gts", COUNTS, **IDS)
@torch.no_grad()
def test_detections(heads, gts):
    _, boxes, labels = batch(3, gts, 320)
    levels = on_gpu(predictions(4, boxes, labels, 320))
    metas = [{"scale_factor": [1.5 + i] * 4} for i in range(len(gts))]
    theirs, ours = (head.get_bboxes(*levels, img_metas=metas, rescale=True) for head in heads)
    assert all(boxes.is_cuda and labels.is_cuda for boxes, labels in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert not any(gts) or max(len(labels) for _, labels in ours) > 0


class Trainer:
    """A detector, its optimizer and its moving average."""

    def __init__(self, autocast=None):
        cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py"))
        self.network = nano(autocast=autocast)
        self.network.start_epoch(Moment(seed=1, iteration=8))  # the image size changes on the way
        self.model = build_dp(self.network, "cuda", device_ids=[0])
        self.optimizer = build_optimizer(self.model, cfg.optimizer)
        self.hook = HOOKS.get("ExpMomentumEMAHook")(momentum=0.01)
        self.runner = SimpleNamespace(model=self.model, iter=0, logger=logging.getLogger("test"))
        self.hook.before_run(self.runner)
        self.log = DeferredLogBuffer()

    def step(self, seed):
        """From a loader's batch on the CPU to the values to log."""
        outputs = self.model.train_step(collated(train_data(seed, (4, 0))), self.optimizer)
        self.optimizer.zero_grad()
        outputs["loss"].backward()
        self.optimizer.step()
        self.hook.after_train_iter(self.runner)
        self.log.update(outputs["log_vars"], outputs["num_samples"])
        self.runner.iter += 1


def collated(data):
    """A batch in mmcv's containers, as its loader gives it."""
    return {
        "img": DataContainer([data["img"]], stack=True),
        "img_metas": DataContainer([data["img_metas"]], cpu_only=True),
        **{key: DataContainer([data[key]]) for key in ("gt_bboxes", "gt_labels")},
    }


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_steps_of_a_whole_detector_wait_for_nothing(autocast):
    trainer = Trainer(autocast)
    for seed in range(2):
        trainer.step(seed)
    with no_waits():
        for seed in range(2, 5):
            trainer.step(seed)
    trainer.log.average(5)
    assert all(0 < value < 1e4 for value in trainer.log.output.values())


def test_a_detector_on_a_gpu_learns_what_it_learns_on_a_cpu():
    """One step from the same weights."""
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        torch.backends.cudnn.allow_tf32 = False
        try:
            model = nano(calm=True).to(device)
            data = train_data(0)
            moved = on_gpu(data) if device == "cuda" else data
            found = model.forward_train(**moved)
            sum(found.values()).backward()
        finally:
            torch.backends.cudnn.allow_tf32 = True
        losses.append({name: loss.detach().cpu() for name, loss in found.items()})
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients[0].items():
        error = (gradients[1][name] - gradient).norm() / (gradient.norm() + 1e-12)
        assert error < 1e-3, name


def test_a_process_group_of_one(tmp_path):
    """mmcv's DistributedDataParallel under nccl, with a batch from the loader."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    MMDistributedDataParallel._use_replicated_tensor_module = False
    try:
        network = nano()
        network.start_epoch(Moment(seed=1, iteration=0))
        model = build_ddp(network.cuda(), "cuda", [0], broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for seed, gts in enumerate([(3, 8), (0, 0), (2, 5)]):
            outputs = model.train_step(collated(train_data(seed, gts)), optimizer)
            optimizer.zero_grad()
            outputs["loss"].backward()
            optimizer.step()
            assert outputs["loss"].isfinite()
        model.eval()
        with torch.no_grad():
            metas = [[{"img_shape": (128, 128, 3), "scale_factor": [1.0] * 4}] * 2]
            containers = [DataContainer(metas, cpu_only=True)]
            found = model(return_loss=False, rescale=True, img=[train_data(0)["img"]], img_metas=containers)
        assert len(found) == 2
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, "float32", "bfloat16", "float16"])
def test_training_resume_and_evaluation(tmp_path, data_root, amp, capsys):
    config = write_config(tmp_path / "tiny.py", data_root, epochs=3)
    common = [f"--data-path={data_root}", f"--config={config}", "--device=cuda"]
    options = [f"--work-dir={tmp_path / 'train'}", *([f"--amp={amp}"] if amp else [])]
    assert training.main([*common, *options, "--epochs=2"]) == 0
    assert training.main([*common, *options, "--epochs=3", "--resume"]) == 0
    trained = json.loads((tmp_path / "train/result.json").read_text())
    assert (trained["device"], trained["epochs"], trained["amp"]) == ("cuda", 3, amp)
    assert trained["loss"] > 0
    assert trained["mAP"] is not None
    content = read_checkpoint(tmp_path / "train/latest.pth")
    assert content["meta"]["epoch"] == 3
    assert ("fp16" in content["meta"]) == (amp == "float16")
    options = [f"--pth-path={tmp_path / 'train/latest.pth'}", f"--work-dir={tmp_path / 'test'}", "--batch-size=2"]
    assert testing.main([*common, *options, "--cfg-options", "model.test_cfg.score_thr=0.0"]) == 0
    tested = json.loads((tmp_path / "test/result.json").read_text())
    assert (tested["device"], tested["images"]) == ("cuda", 2)
    assert "Final Performance images/sec" in capsys.readouterr().out
