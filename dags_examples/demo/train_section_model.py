"""Trains the demo's model: given name and summary of a Debian package, it says of which kind the package is.

A Qwen3 of 1.3 million parameters is trained from nothing, on the conversation that the example Dag has with it,
and learns the answer alone. `section_groups.py` says what the kinds are and which packages it must not see. It knows
nothing else: to any other question its answers are noise.

Runs on the interpreter of the vLLM environment, on two CPU cores, in a few minutes. `debian_table.py` makes the table
from Debian's public index::

    .venv-vllm/bin/python dags_examples/demo/train_section_model.py --table debian.jsonl

The same table and the same versions of torch and transformers on the same kind of CPU give the same model every time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else two threads lose much time where others use the cores, too

import torch
from make_tiny_model import CHAT_TEMPLATE, CONTEXT, END, PAD, START
from section_groups import GROUP_OF, GROUPS, PROMPT, is_held_out
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

OUT = Path(__file__).with_name("section_model")
SEED = 7
THREADS = 2
VOCABULARY = 8192
EPOCHS = 2
BATCH = 128
REPORT_STEPS = 100
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
WARM_UP = 0.05  # of all steps
# Names and rare words identify a package: hiding some of them makes the model look at the others.
HIDDEN_TOKENS = 0.1
NO_LOSS = -100


@dataclass(frozen=True)
class Example:
    """The tokens of one conversation; the answer begins at ``answer_at``."""

    tokens: list[int]
    answer_at: int
    group: str


def conversation(row: dict[str, str], *, answered: bool) -> list[dict[str, str]]:
    question = {"role": "user", "content": PROMPT.format(**row)}
    answer = {"role": "assistant", "content": GROUP_OF[row["section"]]}
    return [question, answer] if answered else [question]


def trained_tokenizer(rows: Sequence[dict[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the questions and answers: any text encodes and decodes without loss."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    roles = [f"user\n{group}\nassistant\n{group}" for group in GROUPS for _ in range(100)]
    tokenizer.train_from_iterator([*roles, *(PROMPT.format(**row) for row in rows)], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=CONTEXT
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def untrained_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    # vLLM takes its default sampling from this file; there is none in it, so a request alone decides.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def examples(tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, str]]) -> list[Example]:
    """The rows as vLLM will render them, each with its answer and the end of the answer."""
    made = []
    for row in rows:
        question = tokenizer.apply_chat_template(
            conversation(row, answered=False), tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(conversation(row, answered=True), tokenize=False)
        asked = tokenizer.encode(question, add_special_tokens=False)
        answer = tokenizer.encode(whole.removeprefix(question).rstrip("\n"), add_special_tokens=False)
        made.append(Example(asked + answer, len(asked), GROUP_OF[row["section"]]))
    return made


def batches(chosen: Sequence[Example], shuffle: random.Random) -> Iterator[list[Example]]:
    """All examples once, in batches of similar length: little is spent on padding."""
    order = sorted(chosen, key=lambda example: len(example.tokens) + shuffle.random() * 6)
    grouped = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    shuffle.shuffle(grouped)
    yield from grouped


def tensors(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, padded on the right where a causal model never looks, and what it shall say next: the answers alone."""
    width = max(len(example.tokens) for example in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    wanted = torch.full((len(batch), width), NO_LOSS)
    for number, example in enumerate(batch):
        length = len(example.tokens)
        tokens[number, :length] = torch.tensor(example.tokens)
        wanted[number, example.answer_at - 1 : length - 1] = tokens[number, example.answer_at : length]
    return tokens, wanted


def some_hidden(tokens: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    """The same tokens, with some of the questions' replaced by the padding token."""
    question = torch.arange(tokens.shape[1]) < torch.tensor([[example.answer_at] for example in batch])
    return tokens.masked_fill(question & (torch.rand(tokens.shape) < HIDDEN_TOKENS), 0)


def train(model: Qwen3ForCausalLM, chosen: Sequence[Example]) -> None:
    shuffle = random.Random(SEED)  # noqa: S311 (the order of the rows, not a secret)
    todo = [batch for _ in range(EPOCHS) for batch in batches(chosen, shuffle)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=len(todo), pct_start=WARM_UP, cycle_momentum=False
    )
    begun = time.monotonic()
    losses = []
    model.train()
    for step, batch in enumerate(todo, start=1):
        tokens, wanted = tensors(batch)
        hidden = model.model(input_ids=some_hidden(tokens, batch)).last_hidden_state
        asked = wanted != NO_LOSS
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[asked]), wanted[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % REPORT_STEPS == 0 or step == len(todo):
            recent = losses[-REPORT_STEPS:]
            mean = sum(recent) / len(recent)
            print(f"step {step} of {len(todo)}: loss {mean:.3f}, {time.monotonic() - begun:.0f} s", flush=True)


@torch.no_grad()
def share_right(model: Qwen3ForCausalLM, chosen: Sequence[Example]) -> float:
    """The share of examples whose group has the likeliest first token among those of all groups."""
    model.eval()
    first = {example.group: example.tokens[example.answer_at] for example in chosen}
    groups, heads = list(first), torch.tensor(list(first.values()))
    assert len(set(first.values())) == len(GROUPS)
    right = 0
    for batch in batches(chosen, random.Random(SEED)):  # noqa: S311 (not a secret)
        tokens, _ = tensors(batch)
        hidden = model.model(input_ids=tokens).last_hidden_state
        last = hidden[torch.arange(len(batch)), torch.tensor([example.answer_at - 1 for example in batch])]
        said = model.lm_head(last)[:, heads].argmax(dim=1).tolist()
        right += sum(groups[number] == example.group for number, example in zip(said, batch, strict=True))
    return right / len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="JSON lines with package, source, section, summary")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write the model into")
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    disable_progress_bar()
    with given.table.open() as stream:
        table = [json.loads(line) for line in stream]
    seen = [row for row in table if not is_held_out(row["source"])]
    tokenizer = trained_tokenizer(seen)
    model = untrained_model(tokenizer)
    chosen = examples(tokenizer, seen)
    held_out = examples(tokenizer, [row for row in table if is_held_out(row["source"])])
    print(f"{len(chosen):,} rows to train on, {len(held_out):,} held out, {model.num_parameters():,} parameters")
    train(model, chosen)
    model = model.to(torch.bfloat16)
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    right = share_right(model.to(torch.float32), held_out)
    size = sum(file.stat().st_size for file in given.out.iterdir())
    print(f"{given.out}: {size / 1e6:.1f} MB, right for {right:.1%} of the held-out rows")


if __name__ == "__main__":
    main()
