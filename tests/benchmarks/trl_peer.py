"""TRL preparing the same rows: tokenizing, completion mask and packing, which SFTTrainer does when it is made.

Runs in the environment `.venv-bench` (tests/benchmarks/requirements.txt). The clock stands still while modules are
imported, rows are read and the model is made. Rows are plain text in the form of chatml, with which TRL is faster than
with conversations, since those go through a chat template written in Jinja. Of its dataset types, prompt-completion has
a loss on the response only, as ours has; for it TRL tokenizes the prompt twice. With text the loss is everywhere.
"""

import json
import resource
import sys
import time
from pathlib import Path


def prompt_completion(row: dict[str, str]) -> dict[str, str]:
    """A row in chatml; TRL appends end-of-text, which is `<|im_end|>`."""
    user = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return {"prompt": f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", "completion": row["output"]}


def text(row: dict[str, str]) -> dict[str, str]:
    """A row in chatml in one piece."""
    return {"text": "".join(prompt_completion(row).values())}


def main(rows: Path, base_model: Path, scratch: Path, row_type: str) -> None:
    import pyarrow.compute as pc
    import trl  # type: ignore[import-not-found]
    from datasets import disable_caching, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    disable_caching()
    dataset = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(scratch / "cache"))
    dataset = dataset.map(text if row_type == "text" else prompt_completion, remove_columns=dataset.column_names)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(tiny)
    config = SFTConfig(
        output_dir=str(scratch / "trainer"), packing=True, max_length=512, use_cpu=True, bf16=False, report_to=[]
    )
    start = time.perf_counter()
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    seconds = time.perf_counter() - start
    packed = trainer.train_dataset
    figures = {
        "seconds": seconds,
        "rows": len(dataset),
        "rows_per_second": len(dataset) / seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": pc.sum(pc.list_value_length(packed.data["input_ids"])).as_py(),
        "packed_rows": len(packed),
        "version": trl.__version__,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    row_file, model_folder, scratch_folder, type_of_rows = sys.argv[1:]
    main(Path(row_file), Path(model_folder), Path(scratch_folder), type_of_rows)
