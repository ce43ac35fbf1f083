# The keyword arguments of diffusers' pipelines, for type checkers alone: a name that no pipeline of diffusers 0.42 takes is
# refused by them as it is at run time.  tests/test_typing.py compares them with what diffusers has.
from typing import Any, TypedDict

# fmt: off
PipelineArguments = TypedDict(  # noqa: UP013
    "PipelineArguments",
    {
        "_auto_resize": Any, "action": Any, "action_latents": Any, "adain_factor": Any, "adapter_conditioning_factor":
        Any, "adapter_conditioning_scale": Any, "add_duration_template": Any, "add_generation_prompt": Any,
        "add_noise_to_image_latents": Any, "add_noise_to_video_latents": Any, "add_predicted_noise": Any,
        "add_resolution_template": Any, "addnoise_condition": Any, "aesthetic_score": Any, "ar_step": Any,
        "atom37_mask": Any, "attention_kwargs": Any, "attention_mask": Any, "attn_res": Any, "attn_store_steps": Any,
        "audio": Any, "audio_codes": Any, "audio_cover_strength": Any, "audio_duration": Any, "audio_duration_s": Any,
        "audio_end_in_s": Any, "audio_guidance_rescale": Any, "audio_guidance_scale": Any, "audio_latents": Any,
        "audio_length_in_s": Any, "audio_modality_scale": Any, "audio_start_in_s": Any, "audio_stg_scale": Any,
        "augment_sigma": Any, "background_video": Any, "base_num_frames": Any, "batch_size": Any, "block_length": Any,
        "block_size": Any, "bpm": Any, "c2w": Any, "cache_implementation": Any, "callback": Any,
        "callback_on_step_end": Any, "callback_on_step_end_tensor_inputs": Any, "callback_steps": Any,
        "caption_upsample_temperature": Any, "causal_block_size": Any, "cfg_interval_end": Any, "cfg_interval_start":
        Any, "cfg_normalization": Any, "cfg_normalize": Any, "cfg_renorm_min": Any, "cfg_trunc_ratio": Any,
        "cfg_truncation": Any, "chi_prompt": Any, "chunk_partition": Any, "circular_padding": Any, "class_labels":
        Any, "clean_caption": Any, "clip_latents": Any, "clip_skip": Any, "clip_value": Any, "complete_track_classes":
        Any, "complex_human_instruction": Any, "cond_image": Any, "cond_strength": Any,
        "condition_frame_indexes_vision": Any, "condition_num_frames": Any, "condition_video_keep": Any,
        "conditional_frame_timestep": Any, "conditioning_attention_mask": Any, "conditioning_attention_strength": Any,
        "conditioning_features": Any, "conditioning_frames": Any, "conditioning_scale": Any, "conditions": Any,
        "condtioning_image": Any, "confidence_threshold": Any, "connector_audio_embeds": Any,
        "connector_video_embeds": Any, "content_prompt": Any, "control_camera_video": Any, "control_guidance_end":
        Any, "control_guidance_start": Any, "control_image": Any, "control_mask": Any, "control_mode": Any,
        "control_video": Any, "control_video_latents": Any, "controlnet_conditioning_scale": Any,
        "controlnet_frame_indices": Any, "controlnet_pooled_projections": Any, "controls": Any,
        "controls_conditioning_scale": Any, "coords_nm": Any, "crops_coords_top_left": Any,
        "cross_attention_guidance_amount": Any, "cross_attention_kwargs": Any, "data_type": Any, "debug": Any,
        "decode_chunk_size": Any, "decode_horizontal_tiles": Any, "decode_noise_scale": Any, "decode_overlap": Any,
        "decode_timestep": Any, "decode_vertical_tiles": Any, "decoder_guidance_scale": Any, "decoder_latents": Any,
        "decoder_num_inference_steps": Any, "decoder_timesteps": Any, "denoise_strength": Any, "denoising_end": Any,
        "denoising_start": Any, "denormalize": Any, "depth_map": Any, "distilled_guidance_scale": Any, "do_patching":
        Any, "duration": Any, "edit_cooldown_steps": Any, "edit_guidance_scale": Any, "edit_mom_beta": Any,
        "edit_momentum_scale": Any, "edit_threshold": Any, "edit_warmup_steps": Any, "edit_weights": Any,
        "editing_pooled_prompt_embeds": Any, "editing_prompt": Any, "editing_prompt_embeddings": Any,
        "editing_prompt_embeds": Any, "editing_threshold": Any, "enable_cfg_renorm": Any, "enable_denormalization":
        Any, "enable_prompt_enhancement": Any, "enable_prompt_rewrite": Any, "enable_safety_check": Any,
        "enable_sound": Any, "enable_temporal_attentions": Any, "enable_temporal_reasoning": Any,
        "encoder_attention_mask": Any, "encoder_hidden_states": Any, "enforce_inference_steps": Any, "ensemble_size":
        Any, "ensembling_kwargs": Any, "eos_early_stop": Any, "eos_token_id": Any, "eta": Any, "example_image": Any,
        "expand_prompts": Any, "face_video": Any, "fake_image_latents": Any, "fonts": Any, "fps": Any, "frame_ids":
        Any, "frame_index": Any, "frame_rate": Any, "frame_size": Any, "frames": Any, "freeze_audio": Any,
        "gen_length": Any, "generate_slots": Any, "generated_prompt_embeds": Any, "gligen_boxes": Any,
        "gligen_images": Any, "gligen_inpaint_image": Any, "gligen_normalize_constant": Any, "gligen_phrases": Any,
        "gligen_scheduled_sampling_beta": Any, "guess_mode": Any, "guidance_keyframe_latents": Any,
        "guidance_keyframe_positions": Any, "guidance_keyframe_strength": Any, "guidance_latents": Any,
        "guidance_rescale": Any, "guidance_scale_2": Any, "guidance_schedule": Any, "guiding_strength": Any, "height":
        Any, "hint": Any, "history_sizes": Any, "image": Any, "image_cond_noise_scale": Any, "image_crf": Any,
        "image_embed_interleave": Any, "image_embeddings": Any, "image_embeds": Any, "image_guidance_scale": Any,
        "image_latents": Any, "image_noise_sigma_max": Any, "image_noise_sigma_min": Any, "image_reference": Any,
        "img_guidance_scale": Any, "init_noise_level": Any, "initial_audio_sampling_rate": Any,
        "initial_audio_waveforms": Any, "inpaint_strength": Any, "input_frames_guidance": Any, "input_ids": Any,
        "input_images": Any, "input_images_mask": Any, "input_phrases_mask": Any, "instruction": Any,
        "intermediate_timesteps": Any, "intrinsics": Any, "inverse_folding": Any, "ip_adapter_image": Any,
        "ip_adapter_image_embeds": Any, "is_amplify_first_chunk": Any, "is_in_context_conditioning": Any,
        "is_skip_first_chunk": Any, "joint_attention_kwargs": Any, "jump_length": Any, "jump_n_sample": Any,
        "keep_first_frame": Any, "keyframe_positions": Any, "keyframes_latents": Any, "keyscale": Any,
        "kv_max_frames": Any, "last_image": Any, "last_image_latents": Any, "latent_window_size": Any,
        "latents_bb_ca": Any, "latents_local_latents": Any, "latents_normalized": Any, "layers": Any, "logsnr_max":
        Any, "logsnr_min": Any, "lq_noise_scale": Any, "lyrics": Any, "mask": Any, "mask_end_seconds": Any,
        "mask_feature": Any, "mask_start_seconds": Any, "mask_token_id": Any, "mask_video": Any,
        "masked_image_latents": Any, "masked_video_latents": Any, "match_input_resolution": Any, "max_area": Any,
        "max_guidance_scale": Any, "max_input_image_size": Any, "max_iter_to_alter": Any, "max_lyric_length": Any,
        "max_new_tokens": Any, "max_post_steps": Any, "max_seconds": Any, "max_sequence_length": Any,
        "max_text_length": Any, "max_timesteps": Any, "messages": Any, "micro_conditioning_aesthetic_score": Any,
        "micro_conditioning_crop_coord": Any, "min_guidance_scale": Any, "min_overlap": Any, "min_seconds": Any,
        "minimal_topk": Any, "mixed_precision_first_steps": Any, "mixed_precision_format": Any,
        "mixed_precision_last_steps": Any, "mixed_precision_reasoner_policy": Any, "modality_scale": Any, "mode": Any,
        "motion_bucket_id": Any, "motion_encode_batch_size": Any, "motion_field_strength_x": Any,
        "motion_field_strength_y": Any, "motion_scale": Any, "motion_speed": Any, "mu": Any, "neg_prompt": Any,
        "negative_aesthetic_score": Any, "negative_attention_mask": Any, "negative_crops_coords_top_left": Any,
        "negative_encoder_attention_mask": Any, "negative_encoder_hidden_states": Any,
        "negative_generated_prompt_embeds": Any, "negative_image_embeds": Any, "negative_index_latents": Any,
        "negative_index_strength": Any, "negative_ip_adapter_image": Any, "negative_ip_adapter_image_embeds": Any,
        "negative_original_size": Any, "negative_pooled_prompt_embeds": Any, "negative_prompt": Any,
        "negative_prompt_2": Any, "negative_prompt_3": Any, "negative_prompt_4": Any,
        "negative_prompt_attention_mask": Any, "negative_prompt_attention_mask_2": Any, "negative_prompt_cu_seqlens":
        Any, "negative_prompt_embeds": Any, "negative_prompt_embeds_2": Any, "negative_prompt_embeds_clip": Any,
        "negative_prompt_embeds_llama3": Any, "negative_prompt_embeds_mask": Any, "negative_prompt_embeds_mask_2":
        Any, "negative_prompt_embeds_pooled": Any, "negative_prompt_embeds_qwen": Any, "negative_prompt_embeds_t5":
        Any, "negative_target_size": Any, "noise_aug_strength": Any, "noise_level": Any, "noise_scale": Any,
        "normalize": Any, "num_ar_conditional_frames": Any, "num_ar_latent_conditional_frames": Any,
        "num_designs_per_prompt": Any, "num_frames": Any, "num_frames_per_chunk": Any, "num_images_per_prompt": Any,
        "num_latent_conditional_frames": Any, "num_latent_frames_per_chunk": Any, "num_prompts_per_image": Any,
        "num_temporal_reasoning_steps": Any, "num_videos_per_prompt": Any, "num_waveforms_per_prompt": Any,
        "original_image": Any, "original_inference_steps": Any, "original_size": Any, "output_latent": Any,
        "output_resolution": Any, "output_uncertainty": Any, "overlap_history": Any, "padding_mask": Any,
        "padding_mask_crop": Any, "pag_adaptive_scale": Any, "pag_scale": Any, "parallel": Any, "partial_t_bb_ca":
        Any, "partial_t_local_latents": Any, "pooled_prompt_embeds": Any, "pooled_prompt_embeds_scale": Any,
        "pose_video": Any, "prev_segment_conditioning_frames": Any, "prior_callback_on_step_end": Any,
        "prior_callback_on_step_end_tensor_inputs": Any, "prior_guidance_scale": Any, "prior_latents": Any,
        "prior_num_inference_steps": Any, "prior_timesteps": Any, "prior_token_ids": Any, "prior_token_image_ids":
        Any, "processing_resolution": Any, "prompt_2": Any, "prompt_3": Any, "prompt_4": Any, "prompt_attention_mask":
        Any, "prompt_attention_mask_2": Any, "prompt_cu_seqlens": Any, "prompt_embeds": Any, "prompt_embeds_2": Any,
        "prompt_embeds_clip": Any, "prompt_embeds_llama3": Any, "prompt_embeds_mask": Any, "prompt_embeds_mask_2":
        Any, "prompt_embeds_pooled": Any, "prompt_embeds_qwen": Any, "prompt_embeds_scale": Any, "prompt_embeds_t5":
        Any, "prompt_enhancement_kwargs": Any, "prompt_enhancement_seed": Any, "prompt_latents": Any,
        "prompt_max_new_tokens": Any, "prompt_reps": Any, "prompt_segments": Any, "prompt_strength": Any,
        "prompt_template": Any, "prompt_upsampling": Any, "prompt_upsampling_temperature": Any, "proportional_attn":
        Any, "pyramid_num_inference_steps_list": Any, "ref_image": Any, "reference_audio": Any,
        "reference_conditions": Any, "reference_downscale_factor": Any, "reference_image": Any, "reference_images":
        Any, "reference_latents": Any, "render_text_images": Any, "repainting_end": Any, "repainting_start": Any,
        "resample_method_input": Any, "resample_method_output": Any, "resolution": Any, "resolution_scale": Any,
        "return_index": Any, "reverse_editing_direction": Any, "round_index": Any, "sag_scale": Any, "sample_audio":
        Any, "sampling_method": Any, "sampling_type": Any, "sana_latent": Any, "scale_factor": Any,
        "scaling_watershed": Any, "segment_frame_length": Any, "sem_guidance": Any, "shift": Any,
        "sigma_conditioning": Any, "sigmas": Any, "silence_padding_duration": Any, "sink_size": Any,
        "skip_guidance_layers": Any, "skip_layer_guidance_scale": Any, "skip_layer_guidance_start": Any,
        "skip_layer_guidance_stop": Any, "skip_steps_sigma_threshold": Any, "skip_text_cleaning": Any,
        "sld_guidance_scale": Any, "sld_mom_beta": Any, "sld_momentum_scale": Any, "sld_threshold": Any,
        "sld_warmup_steps": Any, "sound_latents": Any, "source_embeds": Any, "source_guidance_scale": Any,
        "source_image_grid_thw": Any, "source_prompt": Any, "source_seconds": Any, "source_subject_category": Any,
        "spatial_patch_size": Any, "spatio_temporal_guidance_blocks": Any, "src_audio": Any, "stability_threshold":
        Any, "std": Any, "stg_scale": Any, "store_averaged_over_steps": Any, "super_res_latents": Any,
        "super_res_num_inference_steps": Any, "supports_local_latent": Any, "system_prompt": Any, "t0": Any, "t1":
        Any, "target_embeds": Any, "target_fps": Any, "target_size": Any, "target_subject_category": Any,
        "task_prompt": Any, "task_type": Any, "temperature": Any, "temporal_overlap": Any,
        "temporal_overlap_cond_strength": Any, "temporal_patch_size": Any, "temporal_tile_size": Any,
        "text_attention_mask": Any, "text_encoder_out_layers": Any, "text_images": Any, "text_model_output": Any,
        "text_pad_embedding": Any, "text_to_image_strength": Any, "threshold": Any, "thresholds": Any,
        "tiles_batch_size": Any, "timesignature": Any, "timesteps": Any, "token_indices": Any, "token_type": Any,
        "tokenizer_max_length": Any, "tolerance": Any, "tone_map_compression_ratio": Any, "top_k": Any, "top_p": Any,
        "track_name": Any, "transcription": Any, "true_cfg_scale": Any, "truncation_rate": Any, "upsampling_height":
        Any, "upsampling_strength": Any, "upsampling_width": Any, "use_chat_template": Any,
        "use_clipped_model_output": Any, "use_cross_attn_mask": Any, "use_cross_timestep": Any, "use_dynamic_cfg":
        Any, "use_en_prompt": Any, "use_input_image_size_as_output": Any, "use_intersect_mask": Any, "use_kv_cache":
        Any, "use_mean_velocity": Any, "use_pe": Any, "use_resolution_binning": Any, "use_system_prompt": Any,
        "use_zero_init": Any, "user_mask": Any, "vae_batch_size": Any, "vae_latents": Any, "video": Any,
        "video_latents": Any, "video_length": Any, "video_noise_sigma_max": Any, "video_noise_sigma_min": Any,
        "video_tiles": Any, "view_batch_size": Any, "vocal_language": Any, "width": Any, "zero_steps": Any,
    },
    total=False,
)
# fmt: on

class InvertArguments(PipelineArguments, total=False):
    mask_image: Any
    output_type: str

class GenerateArguments(PipelineArguments, total=False):
    num_inference_steps: int
    guidance_scale: Any
    generator: Any
    strength: float
    output_type: str

class RareArguments(PipelineArguments, total=False):
    num_inference_steps: int
    guidance_scale: float
    generator: Any
    strength: float
    mask_image: Any
