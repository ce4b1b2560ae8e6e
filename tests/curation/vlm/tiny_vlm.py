"""Build a tiny Qwen2.5-VL with random weights: the real architecture, tokeniser, chat template and processor, half a megabyte.

    python tests/curation/vlm/tiny_vlm.py FOLDER

It needs no download. Its answers mean nothing, but they take the same path as those of a real model.
"""

import json
import sys
from pathlib import Path

import curation  # noqa: F401  # its import lets torchvision load beside CPU torch

SPECIAL = [
    *(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
    ),
    *(
        "<|quad_start|>",
        "<|quad_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
]
CORPUS = [
    "a player walks forward and opens the red door in the snow; the frames before, during and after the action, at seconds",
    "the camera turns left, moves forward, stands still; answer with JSON that fits the schema; what is measured is given",
    '{"short": "", "long": "", "scene": null, "present": false, "evidence": "", "frames": [1, 2, 3], "interactive": true}',
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' or 'image' in c or 'image_url' in c %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'video' or 'video' in c or 'video_url' in c %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 16_384
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": MEAN, "image_std": STD}


def build(folder: Path) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(_config(tokenizer)).to(torch.float32).save_pretrained(folder)
    image = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", **PATCHES, "size": SIZE}
    image |= {"min_pixels": SIZE["shortest_edge"], "max_pixels": SIZE["longest_edge"], "do_convert_rgb": True}
    video = {"video_processor_type": "Qwen2VLVideoProcessor", **PATCHES, "size": SIZE, "do_sample_frames": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    (folder / "chat_template.jinja").write_text(CHAT)


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = Tokenizer(models.BPE(unk_token=None))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, **names, chat_template=CHAT, model_max_length=CONTEXT)


def _config(tokenizer):
    from transformers import Qwen2_5_VLConfig

    number = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    # Heads of 32, because the CPU attention of vLLM supports no smaller ones.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), **sizes, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT}
    ends = {
        "bos_token_id": number("<|im_start|>"),
        "eos_token_id": number("<|im_end|>"),
        "pad_token_id": number("<|endoftext|>"),
    }
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "in_channels": 3}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112}
    return Qwen2_5_VLConfig(
        text_config={**text, **ends, "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={**vision, "fullatt_block_indexes": [1]},
        **{f"{name}_token_id": number(f"<|{name}_pad|>") for name in ("image", "video")},
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
