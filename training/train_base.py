"""Base model: text encoder and UNet, trained together to predict the noise in latents of captioned icons.

    python training/train_base.py          # needs build/model/vae; writes build/model/base, a StableDiffusionPipeline

Loss: squared error of the predicted noise, weighted by min(5, SNR) / SNR (min-SNR, arXiv 2303.09556).  One caption in ten is
empty, for classifier-free guidance, and one in ten without style.  Each icon is learnt at nine positions.
"""

import json
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from images import NOISE_SCHEDULE, load, save_sheet, unit
from loop import WORK, Plan, train
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH, TOKENS, MERGES = 192, 16, 1500
PLAN = Plan("base", steps=3200, batch=64, muon_rate=0.01, adam_rate=2e-3, average=0.998, warmup=100)
EMPTY, STYLELESS = 0.1, 0.1
SHIFTS = [(down, right) for down in (-2, 0, 2) for right in (-2, 0, 2)]
SHOWN = [f"{name}, {style} style" for name in ("pizza", "dog face", "red heart", "rocket") for style in ("noto", "flat")]


# --------------------------------------------------------------------------------------------------------------- the parts


def build_tokenizer(captions):
    """CLIP's tokenizer with a vocabulary of its own: all bytes, and the pairs most frequent in the captions."""
    clip = CLIPTokenizer()._tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # The end of the text must not be token 2: CLIPTextModel takes that for a sign of old configurations.
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(a + "</w>" for a in alphabet), *map("".join, merges)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def build_text_encoder(vocabulary):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def build_unet():
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_pipeline(vae, tokenizer, text_encoder, unet, scheduler):
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base_scheduler():
    return DDIMScheduler(
        **NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )


def tokens(tokenizer, captions):
    return tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids


# ------------------------------------------------------------------------------------------------------------- the training


@torch.no_grad()
def cached_latents(vae, pixels, shifts):
    """Latents of each image at each position: mean and standard deviation of the posterior, [len(shifts), N, 4, 16, 16]."""
    found = [[vae.encode(unit(part).roll(shift, (2, 3))).latent_dist for part in pixels.split(64)] for shift in shifts]
    scale = vae.config.scaling_factor
    means = torch.stack([torch.cat([d.mean for d in each]) for each in found]) * scale
    return means, torch.stack([torch.cat([d.std for d in each]) for each in found]) * scale


class Task:
    outer = ("conv_in", "conv_out", "embed", "time_emb")

    def __init__(self, device):
        tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
        vae = AutoencoderKL.from_pretrained(WORK / "vae")
        records, pixels = load("train")
        self.means, self.stds = (x.to(device) for x in cached_latents(vae, pixels, SHIFTS))
        self.share = torch.tensor([r["share"] for r in records], device=device)
        self.captions = tokens(tokenizer, [r["caption"] for r in records]).to(device)
        self.styleless = tokens(tokenizer, [r["name"] for r in records]).to(device)
        self.empty = tokens(tokenizer, [""]).to(device)
        self.scheduler = base_scheduler()
        self.module = torch.nn.ModuleDict({"text": build_text_encoder(len(tokenizer)), "unet": build_unet()}).to(device)
        heldout, pixels = load("heldout_pair")
        self.checked = {
            "train loss": (self.means[4, ::14], self.captions[::14]),
            "held-out loss": (
                cached_latents(vae, pixels, [(0, 0)])[0][0].to(device),
                tokens(tokenizer, [r["caption"] for r in heldout]).to(device),
            ),
        }

    def noise_loss(self, module, latents, captions, timesteps, noise):
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        predicted = module["unet"](noisy, timesteps, module["text"](captions)[0]).sample
        snr = compute_snr(self.scheduler, timesteps)
        return ((predicted.float() - noise).pow(2).flatten(1).mean(1) * snr.clamp(max=5) / snr).mean()

    def loss(self, generator, size):
        device = generator.device
        chosen = torch.multinomial(self.share, size, generator=generator)
        place = torch.randint(len(SHIFTS), (size,), generator=generator, device=device)
        latents = self.means[place, chosen]
        latents = latents + self.stds[place, chosen] * torch.randn(latents.shape, generator=generator, device=device)
        # One timestep of each of `size` equal parts of the schedule.
        spread = torch.arange(size, device=device) + torch.rand(size, generator=generator, device=device)
        timesteps = (spread * len(self.scheduler) / size).long()
        kind = torch.rand(size, 1, generator=generator, device=device)
        captions = torch.where(kind < EMPTY + STYLELESS, self.styleless[chosen], self.captions[chosen])
        captions = torch.where(kind < EMPTY, self.empty, captions)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        return self.noise_loss(self.module, latents, captions, timesteps, noise)

    def evaluate(self, module):
        """The loss on a few seen and all withheld images, always at the same timesteps and with the same noise."""
        figures = {}
        for name, (latents, captions) in self.checked.items():
            generator = torch.Generator().manual_seed(0)
            timesteps = torch.linspace(0, len(self.scheduler) - 1, len(latents)).long().to(latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            figures[name] = self.noise_loss(module, latents, captions, timesteps, noise)
        return figures


def main():
    captions = [r["caption"] for r in load("train")[0]]
    build_tokenizer(captions).save_pretrained(WORK / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    module = torch.nn.ModuleDict({"text": build_text_encoder(len(tokenizer)), "unet": build_unet()})
    module.load_state_dict(train(PLAN, Task))
    module.eval()
    vae = AutoencoderKL.from_pretrained(WORK / "vae")
    pipe = build_pipeline(vae, tokenizer, module["text"], module["unet"], base_scheduler())
    pipe.save_pretrained(WORK / "base")
    call = {"num_inference_steps": 50, "guidance_scale": 3.0, "height": 64, "width": 64, "output_type": "pt"}
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(SHOWN))]
    images = pipe(SHOWN, generator=generators, **call).images
    save_sheet(WORK / "base.png", [2 * images - 1])


if __name__ == "__main__":
    sys.exit(main())
