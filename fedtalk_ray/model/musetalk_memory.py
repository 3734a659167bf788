"""What LoRA training of MuseTalk 1.5's networks holds and sends, by their sizes and with random weights.

Its U-Net is Stable Diffusion 1.4's with eight channels in (the masked picture's latents and a reference's) and 384
numbers a sound token; its autoencoder is sd-vae-ft-mse. One pass without noise, whose latents are decoded: the loss
is taken on pixels, through the frozen decoder. `python -m fedtalk_ray.model.musetalk_memory` prints the table of
docs/presets.md. **No published weights were run** (`model.musetalk_folder` reads them).
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, PeftModel, get_peft_model

from fedtalk_ray.media.whisper_states import HOPS, LAYERS, TOKEN_WIDTH
from fedtalk_ray.model.held_memory import LiveBytes
from fedtalk_ray.model.musetalk_networks import ALL_LAYERS, ATTENTION, MuseTalkDenoiser

PIXELS = 256
"""A face's side."""

SCALING = 0.18215
"""Of the autoencoder's latents, as Stable Diffusion 1.x has it."""


@dataclass(frozen=True)
class Sizes:
    """unet, decoder: channels of their levels, finest first. groups: of the normalisation. layers: a block's."""

    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    decoder: tuple[int, ...] = (128, 256, 512, 512)
    groups: int = 32
    layers: int = 2


FULL, SMALL = Sizes(), Sizes((32, 32, 64, 64), (16, 32, 32, 32), 8)
"""The published size, and one of the same classes that a test can step."""


def make_unet(sizes: Sizes = FULL, latent_size: int = PIXELS // 8) -> MuseTalkDenoiser:
    return MuseTalkDenoiser(
        block_out_channels=sizes.unet,
        norm_num_groups=sizes.groups,
        layers_per_block=sizes.layers,
        latent_size=latent_size,
    )


def make_autoencoder(sizes: Sizes = FULL, pixels: int = PIXELS) -> AutoencoderKL:
    levels = len(sizes.decoder)
    return AutoencoderKL(
        block_out_channels=sizes.decoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=sizes.layers,
        latent_channels=4,
        norm_num_groups=sizes.groups,
        sample_size=pixels,
    )


class LoraStep:
    """U-Net with a LoRA adapter and frozen decoder on a device, and one step's loss on random windows."""

    def __init__(
        self,
        rank: int,
        targets: tuple[str, ...],
        checkpointing: bool,
        dtype: torch.dtype,
        device: str = "meta",
        sizes: Sizes = FULL,
    ) -> None:
        with torch.device(device):
            unet, self.autoencoder = make_unet(sizes), make_autoencoder(sizes)
            self.unet: PeftModel = get_peft_model(unet, LoraConfig(r=rank, target_modules=list(targets)))
        for model in (self.unet, self.autoencoder):
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        self.autoencoder.requires_grad_(False)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            self.autoencoder.enable_gradient_checkpointing()
        self.unet.train()
        self._dtype, self._device = dtype, device

    def adapter(self) -> list[torch.nn.Parameter]:
        """What is trained and, federated, sent."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def loss(self, batch: int) -> torch.Tensor:
        """L1 on pixels of so many frames. The published loss adds .01 of VGG's, which is not here."""

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(batch, *shape, device=self._device, dtype=self._dtype)

        side = PIXELS // 8
        timestep = torch.zeros(batch, device=self._device, dtype=torch.long)
        sound = drawn(1, HOPS, LAYERS * TOKEN_WIDTH)
        latents = self.unet(drawn(1, 8, side, side), timestep, sound, drawn(8, side, side))[:, 0] / SCALING
        pixels = self.autoencoder.decode(latents).sample
        return (pixels.float() - drawn(3, pixels.shape[-2], pixels.shape[-1]).float()).abs().mean()


@dataclass(frozen=True)
class Held:
    """adapter: its values. weights: bytes of U-Net, adapter and autoencoder. step: bytes that forward and backward pass
    hold at most beside them, gradients among them. moments: bytes of AdamW's two, in float32."""

    adapter: int
    weights: int
    step: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.step + self.moments


def held(rank: int, targets: tuple[str, ...], batch: int, checkpointing: bool, dtype: torch.dtype) -> Held:
    """Of a step of the full size, on the meta device. Attention counts with all its weights, which a GPU's kernels do
    not keep."""
    step = LoraStep(rank, targets, checkpointing, dtype)
    values = sum(p.numel() for model in (step.unet, step.autoencoder) for p in model.parameters())
    adapter = sum(parameter.numel() for parameter in step.adapter())
    with LiveBytes(step.unet, step.autoencoder) as live:
        step.loss(batch).backward()
    return Held(adapter, values * dtype.itemsize, live.peak, 2 * 4 * adapter)


def table() -> str:
    """LoRA training of the full size in Markdown: GiB without / with checkpointing by batch, and a client's bytes."""
    batches = (1, 2, 3, 4)
    rows = [["LoRA", "values", "a client sends, MiB", "stored as", *(f"GiB at batch {batch}" for batch in batches)]]
    rows.append(["---"] * len(rows[0]))
    for name, targets in (("attention", ATTENTION), ("all layers", ALL_LAYERS)):
        for rank in (8, 16):
            for dtype in (torch.bfloat16, torch.float32):
                found = [[held(rank, targets, batch, again, dtype) for again in (False, True)] for batch in batches]
                cells = [" / ".join(f"{each.total / 2**30:.1f}" for each in both) for both in found]
                adapter = found[0][0].adapter
                row = [f"{name}, rank {rank}", f"{adapter:,}", f"{adapter * 4 / 2**20:.1f}", str(dtype).split(".")[1]]
                rows.append([*row, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
