"""Autoencoder of the embedded models: AutoencoderKL, 64x64 pixels to latents [4, 16, 16].

    python training/train_vae.py          # writes build/model/vae

Loss: L1, at three scales, and of the differences of neighbours; KL divergence.  The decoder is given latents with noise of
`NOISE` of their standard deviation, and learns to draw the same image from all latents near by: an autoencoder without it
packs its images so densely that a small error of an inversion is seen.  Then the decoder goes on alone: the latents stay
what they are, and an edition can get a better decoder without new networks.
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from images import load, psnr, save_sheet, unit
from loop import WORK, Plan, result, train

CHANNELS = (24, 48, 96)
NOISE, KL = 0.03, 1e-4
PLAN = Plan("vae", steps=1250, batch=32, muon_rate=0.015, adam_rate=2e-3, average=0.998, evaluate=200)
DECODER = Plan("decoder", steps=500, batch=32, muon_rate=0.01, adam_rate=1e-3, average=0.99, evaluate=100)
LEARNT = ("train", "other")


def build_vae():
    blocks = len(CHANNELS)
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )


def reconstruction_loss(drawn, image):
    loss = F.l1_loss(drawn, image)
    for scale in (2, 4):
        loss = loss + 0.1 * F.l1_loss(F.avg_pool2d(drawn, scale), F.avg_pool2d(image, scale))
    for axis in (2, 3):
        loss = loss + 0.25 * F.l1_loss(drawn.diff(dim=axis), image.diff(dim=axis))
    return loss


class Task:
    outer = ("conv_in", "conv_out", "quant_conv")

    def __init__(self, device):
        self.module = build_vae().to(device)
        self.pixels = load(*LEARNT)[1].to(device)
        self.heldout = unit(load("heldout_pair")[1]).to(device)

    def loss(self, generator, size):
        chosen = torch.randint(len(self.pixels), (size,), generator=generator, device=generator.device)
        image = unit(self.pixels[chosen])
        mirrored = torch.rand(size, 1, 1, 1, generator=generator, device=generator.device) < 0.5
        image = torch.where(mirrored, image.flip(3), image)
        shift = torch.randint(-3, 4, (2,), generator=generator, device=generator.device).tolist()
        image = image.roll(shift, (2, 3))
        posterior = self.module.encode(image).latent_dist
        noise = NOISE * posterior.mean.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(posterior.mean)
        drawn = self.module.decode(posterior.sample() + noise).sample
        kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
        return reconstruction_loss(drawn, image) + KL * kl

    def evaluate(self, vae):
        posterior = vae.encode(self.heldout).latent_dist
        scale = posterior.mean.std()
        noisy = posterior.mean + 0.05 * scale * torch.randn(posterior.mean.shape, generator=torch.manual_seed(0))
        return {
            "PSNR": psnr(vae.decode(posterior.mean).sample, self.heldout).mean(),
            "PSNR with 5 % noise": psnr(vae.decode(noisy).sample, self.heldout).mean(),
            "posterior std": posterior.std.mean() / scale,
        }


class DecoderTask(Task):
    """What PLAN has trained, the encoder held."""

    def __init__(self, device):
        super().__init__(device)
        self.module.load_state_dict(result(PLAN))
        self.module.encoder.requires_grad_(False)
        self.module.quant_conv.requires_grad_(False)


@torch.no_grad()
def standardise(vae, pixels):
    """Fold the mean and the relative scale of each latent channel into the two 1x1 convolutions: what the pipeline sees
    has mean zero, and one `scaling_factor` for all channels."""
    latents = torch.cat([vae.encode(unit(part)).latent_dist.mean for part in pixels.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = std.mean() / std
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain.view(-1, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()  # log variances
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=round(float(1 / std.mean()), 5))


def main():
    train(PLAN, Task)
    vae = build_vae()
    vae.load_state_dict(train(DECODER, DecoderTask))
    vae.eval()
    standardise(vae, load("train")[1])
    vae.save_pretrained(WORK / "vae")
    heldout = unit(load("heldout_pair")[1])
    with torch.no_grad():
        drawn = vae(heldout).sample
    print(f"held-out PSNR {psnr(drawn, heldout).mean():.2f} dB, scaling factor {vae.config.scaling_factor}")
    save_sheet(WORK / "vae.png", [heldout[:16], drawn[:16]])


if __name__ == "__main__":
    sys.exit(main())
