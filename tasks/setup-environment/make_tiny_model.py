"""Make a four-layer random-weight Qwen2 model and a byte-level BPE tokenizer; no download."""

import json
import os
import random
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
final = os.path.abspath(sys.argv[1])
out = final + ".tmp"  # renamed at the end: a folder that exists is complete
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
rng = random.Random(0)
syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(4000)]
tok = Tokenizer(models.BPE())
tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tok.decoder = decoders.ByteLevel()
tok.train_from_iterator(
    (" ".join(rng.choice(words) for _ in range(12)) for _ in range(1000)),
    trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ),
)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tok,
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    model_max_length=32768,
    clean_up_tokenization_spaces=False,
)
fast.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
fast.save_pretrained(out)

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=len(fast),
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    initializer_range=0.05,
)
model = Qwen2ForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(out)
shutil.rmtree(final, ignore_errors=True)
os.rename(out, final)
print(json.dumps({"vocab": len(fast), "parameters": sum(p.numel() for p in model.parameters())}))
