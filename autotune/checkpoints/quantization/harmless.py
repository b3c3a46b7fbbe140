"""Keys of a `quantization_config` that do not change what a model computes.

They tell how the weights were searched for, which linears have 4 bits (the tensors say so too), or which
kernel the writer's library should take. The names are those that the writers' own sources write.
"""

_AUTO_GPTQ = frozenset({
    "damp_percent", "model_file_base_name", "model_name_or_path", "static_groups", "true_sequential",
})  # fmt: skip

_GPTQMODEL = frozenset({
    "act_group_aware", "damp_auto_increment", "fail_safe", "failsafe", "hyb_act", "lm_head", "meta", "mse",
    "offload_to_disk", "offload_to_disk_path", "pack_dtype", "pack_impl", "parallel_packing", "v2",
    "v2_alpha", "v2_memory_device",
})  # fmt: skip

_TRANSFORMERS = frozenset({
    "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "dataset", "disable_exllama",
    "do_fuse", "exllama_config", "fuse_max_seq_len", "ignore", "max_input_length", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "modules_to_fuse",
    "modules_to_not_convert", "pad_token_id", "tokenizer", "use_cuda_fp16", "use_exllama",
})  # fmt: skip

_AUTO_ROUND = frozenset({
    "act_data_type", "act_dynamic", "act_group_size", "act_sym", "amp", "autoround_version", "enable_alg_ext",
    "enable_minmax_tuning", "enable_norm_bias_tuning", "enable_quanted_input", "gradient_accumulate_steps",
    "iters", "low_cpu_mem_usage", "low_gpu_mem_usage", "lr", "minmax_lr", "model_dtype", "model_free",
    "n_samples", "nsamples", "provider", "quant_block_list", "sampler", "scale_dtype", "seqlen",
    "static_attention_granularity", "static_kv_granularity", "supported_types", "to_quant_block_names",
    "train_bs", "use_quant_input",
})  # fmt: skip

LINEARS = _AUTO_GPTQ | _GPTQMODEL | _TRANSFORMERS | _AUTO_ROUND
"""For awq, gptq and auto-round alike: these writers write all of them, and under more than one method."""

COMPRESSED = frozenset({
    "dequantize", "global_compression_ratio", "ignore", "provider", "quantization_status", "run_compressed",
    "use_optimized_inference", "version",
})  # fmt: skip

COMPRESSED_GROUP = frozenset({"targets"})

COMPRESSED_WEIGHTS = frozenset({"actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"})
