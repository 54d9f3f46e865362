"""The columns of bench.csv, in order, and their meanings, which the JSON file repeats."""

from __future__ import annotations

STAGE_MEANINGS = {
    "preprocess": "images to patches and onto the device; for files also reading, resizing and the tokenizer",
    "vit": "vision tower without projector",
    "projector": "merger or projector",
    "signals": "what a method asks for: attention received in the tower, keys, the learned scorer",
    "selection": "the method's choice, with what it computes from q and k itself",
    "cut": "finding visual tokens, dropping or merging rows, positions and masks",
    "llm_prefill": "language model on the prompt, without head",
    "other": "what is left of prefill: embeddings, position ids, head",
    "prefill": "first of vision tower and model entered -> first scores of the vocabulary; the stages from vit on",
    "ttft": "preprocess, and generate() called -> first token chosen",
    "tpot": "mean of the forced tokens after the first: one step of the whole batch",
    "e2e": "preprocess and the whole of generate()",
}
COLUMNS = {
    "model": "name in conf/model",
    "weights": "real, random (full size) or tiny (same architecture, small)",
    "method": "name; none is the unpruned model",
    "params": "parameters that are not the defaults",
    "budget": "share kept, or tokens as 64tok",
    "workload": "grid of the images or clip, t x h x w in tokens, or name of the file",
    "visual_tokens": "of one prompt, before pruning",
    "kept_tokens": "of one prompt, after it",
    "tokens_per_layer": "that a decoder layer sees, on average: more than kept if the cut is inside the language model",
    "text_tokens": "of one prompt",
    "new_tokens": "forced length of the answer",
    "batch": "prompts at once; times and operations are of the whole batch",
    "n": "timed answers",
    **{
        f"{stage}_{kind}": f"{text}: {meaning}, in milliseconds"
        for stage, meaning in STAGE_MEANINGS.items()
        for kind, text in (("ms", "median"), ("iqr_ms", "interquartile range"))
    },
    "e2e_saving_ms": "median over rounds of what was saved end to end against the unpruned model in the same round",
    "e2e_saving_iqr_ms": "interquartile range of it",
    "prefill_speedup": "median prefill of the unpruned model over this one's",
    "e2e_speedup": "the same end to end",
    "idpruner_prefill_ms": "as in table 4 of arXiv 2602.13315: mean, host's clock around the prefill, unsynchronised",
    "idpruner_e2e_ms": "as there: mean, host's clock around generate(), preprocessing not counted",
    "visionselector_prefill_ms": "as in arXiv 2510.16598: mean, events on the device with the vision tower inside",
    "visionselector_e2e_ms": "as there: mean, events around generate()",
    "peak_allocated_bytes": "of the GPU's memory, weights included, in an answer from an empty allocator; none on CPUs",
    "peak_reserved_bytes": "the same, what the allocator took from the GPU",
    "kv_cache_bytes": "keys and values of the whole batch after the prefill",
    "vit_tflops": "10^12 operations of the vision tower, counted from the configuration",
    "projector_tflops": "of the projector",
    "signals_tflops": "of the signals",
    "selection_tflops": "of the choice, by the method's definition",
    "prefill_tflops": "of the language model on the prompt, with head",
    "decode_tflops": "of the tokens after the first",
    "total_tflops": "of all these",
    "paper_prefill_tflops": "language model on the prompt as peers quote it: 4nd^2 + 2n^2d + 2ndm a layer",
    "device": "name of the GPU, or cpu",
    "driver": "of the GPU",
    "torch": "version",
    "transformers": "version",
    "dtype": "of the weights",
    "kernel": "attention implementation",
    "error": "why there are no times",
}
