"""Tiny pipelines of the real classes with random weights, saved as a hub's model is: what `from_pretrained` loads."""

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("<pad>", "</s>", "<unk>", "a", "the", "door", "opens", "snow", "falls", "make", "it", "scene")


def _tokenizer(words=WORDS):
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 64}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def wan(folder):
    """Wan2.2's image-to-video class, which takes a last frame too."""
    torch.manual_seed(0)
    text = transformers.UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=_tokenizer(), text_encoder=transformers.UMT5EncoderModel(text), vae=vae, transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler(flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return str(folder)


def hunyuan_video(folder):
    """HunyuanVideo's image-to-video class, whose prompt template has a place for 576 parts of the image."""
    torch.manual_seed(0)
    marks = ("<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = _tokenizer((*WORDS, *marks))
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    vision = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=2,
        projection_dim=8,
    )
    llama = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0
    )
    llava = transformers.LlavaConfig(
        vision_config=vision, text_config=llama, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, projection_dim=8,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4), image_condition_type="token_replace",
    )  # fmt: skip
    pipe = diffusers.HunyuanVideoImageToVideoPipeline(
        text_encoder=transformers.LlavaForConditionalGeneration(llava), tokenizer=tokenizer, transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder_2=transformers.CLIPTextModel(clip),
        tokenizer_2=_tokenizer(), image_processor=transformers.CLIPImageProcessor(size=48, crop_size=48),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return str(folder)


def helios(folder):
    """Helios's class, which makes chunks of nine latents after a history of nineteen."""
    torch.manual_seed(0)
    text = transformers.UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = diffusers.HeliosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1, rope_dim=(4, 4, 4)
    )
    pipe = diffusers.HeliosPipeline(
        tokenizer=_tokenizer(), text_encoder=transformers.UMT5EncoderModel(text), transformer=transformer,
        vae=diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=diffusers.HeliosScheduler(stages=1, stage_range=[0, 1]),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return str(folder)


def flux(folder, editor=False):
    """FLUX, or FLUX Kontext, which edits."""
    torch.manual_seed(0)
    clip = transformers.CLIPTextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=1, projection_dim=32,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    t5 = transformers.T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    vae = diffusers.AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,), layers_per_block=1, latent_channels=1,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    kind = diffusers.FluxKontextPipeline if editor else diffusers.FluxPipeline
    pipe = kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder=transformers.CLIPTextModel(clip),
        text_encoder_2=transformers.T5EncoderModel(t5), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        transformer=transformer, vae=vae,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return str(folder)
