"""GGUF files of tiny models, as llama.cpp's converter writes them."""

import json

import gguf
import torch
from safetensors.torch import load_file

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder, path, kind="Q8_0"):
    """Writes a tiny Llama of the folder as a GGUF file with its matrices in one type."""
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    alphabet = [chr(256 + byte) for byte in range(config["vocab_size"] - 3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*alphabet, "<bos>", "<eos>", "<pad>"])
    writer.add_token_types([1] * len(alphabet) + [3] * 3)
    writer.add_token_merges([f"{alphabet[0]} {alphabet[1]}"])
    writer.add_bos_token_id(len(alphabet))
    writer.add_eos_token_id(len(alphabet) + 1)
    kinds = gguf.GGMLQuantizationType
    for name, tensor in load_file(folder / "model.safetensors").items():
        part = name.removesuffix(".weight")
        if part.startswith("model.layers."):
            _, _, layer, part = part.split(".", 3)
            stored = f"blk.{layer}.{PARTS[part]}.weight"
        else:
            stored = f"{ENDS[part]}.weight"
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            count = heads if "q_proj" in part else kv_heads
            # llama.cpp rotates neighbours, Hugging Face's layout halves
            tensor = (
                tensor.view(count, 2, len(tensor) // count // 2, -1).transpose(1, 2).reshape(tensor.shape)
            )
        values = tensor.to(torch.float32).contiguous().numpy()
        as_kind = kinds.F32 if tensor.ndim == 1 else kinds[kind]
        writer.add_tensor(stored, gguf.quantize(values, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded_as(folder, kind):
    """Rounds the folder's own weights to what a GGUF file of the type gives, as a de-quantised copy has them."""
    from safetensors.torch import save_file

    kinds = gguf.GGMLQuantizationType
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            packed = gguf.quantize(tensor.to(torch.float32).numpy(), kinds[kind])
            tensors[name] = torch.from_numpy(gguf.dequantize(packed, kinds[kind])).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    return folder
