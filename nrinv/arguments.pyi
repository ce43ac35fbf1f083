# The keyword arguments of diffusers' pipelines, for type checkers alone: a name that none of them takes is refused.
# tests/typing/test_refused.py compares them with what diffusers 0.42 has.
from typing import Any, TypedDict

A = Any  # of whatever type the pipeline wants it
# fmt: off
PipelineArguments = TypedDict("PipelineArguments", {  # noqa: UP013
    "_auto_resize": A, "action": A, "action_latents": A, "adain_factor": A, "adapter_conditioning_factor": A,
    "adapter_conditioning_scale": A, "add_duration_template": A, "add_noise_to_image_latents": A,
    "add_noise_to_video_latents": A, "add_resolution_template": A, "addnoise_condition": A, "aesthetic_score": A,
    "ar_step": A, "attention_kwargs": A, "attention_mask": A, "attn_res": A, "audio": A, "audio_codes": A,
    "audio_cover_strength": A, "audio_duration": A, "audio_duration_s": A, "audio_end_in_s": A, "audio_guidance_rescale": A,
    "audio_guidance_scale": A, "audio_latents": A, "audio_length_in_s": A, "audio_modality_scale": A, "audio_start_in_s": A,
    "audio_stg_scale": A, "augment_sigma": A, "background_video": A, "base_num_frames": A, "bpm": A, "callback": A,
    "callback_on_step_end": A, "callback_on_step_end_tensor_inputs": A, "callback_steps": A,
    "caption_upsample_temperature": A, "causal_block_size": A, "cfg_interval_end": A, "cfg_interval_start": A,
    "cfg_normalization": A, "cfg_normalize": A, "cfg_renorm_min": A, "cfg_trunc_ratio": A, "cfg_truncation": A,
    "chunk_partition": A, "circular_padding": A, "class_labels": A, "clean_caption": A, "clip_latents": A, "clip_skip": A,
    "clip_value": A, "complete_track_classes": A, "complex_human_instruction": A, "cond_image": A, "cond_strength": A,
    "condition_frame_indexes_vision": A, "condition_num_frames": A, "condition_video_keep": A,
    "conditional_frame_timestep": A, "conditioning_attention_mask": A, "conditioning_attention_strength": A,
    "conditioning_frames": A, "conditioning_scale": A, "conditions": A, "condtioning_image": A, "connector_audio_embeds": A,
    "connector_video_embeds": A, "content_prompt": A, "control_camera_video": A, "control_guidance_end": A,
    "control_guidance_start": A, "control_image": A, "control_mask": A, "control_mode": A, "control_video": A,
    "control_video_latents": A, "controlnet_conditioning_scale": A, "controlnet_frame_indices": A,
    "controlnet_pooled_projections": A, "controls": A, "controls_conditioning_scale": A, "crops_coords_top_left": A,
    "cross_attention_guidance_amount": A, "cross_attention_kwargs": A, "data_type": A, "debug": A, "decode_chunk_size": A,
    "decode_horizontal_tiles": A, "decode_noise_scale": A, "decode_overlap": A, "decode_timestep": A,
    "decode_vertical_tiles": A, "decoder_guidance_scale": A, "decoder_timesteps": A, "denoise_strength": A,
    "denoising_end": A, "denoising_start": A, "denormalize": A, "depth_map": A, "distilled_guidance_scale": A,
    "do_patching": A, "duration": A, "edit_cooldown_steps": A, "edit_guidance_scale": A, "edit_mom_beta": A,
    "edit_momentum_scale": A, "edit_threshold": A, "edit_warmup_steps": A, "edit_weights": A, "editing_prompt": A,
    "editing_prompt_embeddings": A, "enable_cfg_renorm": A, "enable_denormalization": A, "enable_prompt_enhancement": A,
    "enable_prompt_rewrite": A, "enable_safety_check": A, "enable_sound": A, "enable_temporal_attentions": A,
    "enable_temporal_reasoning": A, "encoder_attention_mask": A, "encoder_hidden_states": A, "enforce_inference_steps": A,
    "ensemble_size": A, "ensembling_kwargs": A, "eta": A, "example_image": A, "expand_prompts": A, "face_video": A,
    "fake_image_latents": A, "fonts": A, "fps": A, "frame_ids": A, "frame_index": A, "frame_rate": A, "frame_size": A,
    "frames": A, "freeze_audio": A, "generate_slots": A, "generated_prompt_embeds": A, "gligen_boxes": A, "gligen_images": A,
    "gligen_inpaint_image": A, "gligen_normalize_constant": A, "gligen_phrases": A, "gligen_scheduled_sampling_beta": A,
    "guess_mode": A, "guidance_keyframe_latents": A, "guidance_keyframe_positions": A, "guidance_keyframe_strength": A,
    "guidance_latents": A, "guidance_rescale": A, "guidance_scale_2": A, "guidance_schedule": A, "guiding_strength": A,
    "height": A, "hint": A, "history_sizes": A, "image": A, "image_cond_noise_scale": A, "image_crf": A,
    "image_embed_interleave": A, "image_embeddings": A, "image_embeds": A, "image_guidance_scale": A, "image_latents": A,
    "image_noise_sigma_max": A, "image_noise_sigma_min": A, "image_reference": A, "img_guidance_scale": A,
    "init_noise_level": A, "initial_audio_sampling_rate": A, "initial_audio_waveforms": A, "inpaint_strength": A,
    "input_frames_guidance": A, "input_images": A, "input_images_mask": A, "input_phrases_mask": A, "instruction": A,
    "intermediate_timesteps": A, "ip_adapter_image": A, "ip_adapter_image_embeds": A, "is_amplify_first_chunk": A,
    "is_skip_first_chunk": A, "joint_attention_kwargs": A, "keep_first_frame": A, "keyframe_positions": A,
    "keyframes_latents": A, "keyscale": A, "last_image": A, "latents_normalized": A, "layers": A, "logsnr_max": A,
    "logsnr_min": A, "lyrics": A, "mask": A, "mask_end_seconds": A, "mask_feature": A, "mask_start_seconds": A,
    "mask_video": A, "masked_image_latents": A, "masked_video_latents": A, "match_input_resolution": A, "max_area": A,
    "max_guidance_scale": A, "max_input_image_size": A, "max_iter_to_alter": A, "max_lyric_length": A, "max_new_tokens": A,
    "max_seconds": A, "max_sequence_length": A, "max_text_length": A, "max_timesteps": A,
    "micro_conditioning_aesthetic_score": A, "micro_conditioning_crop_coord": A, "min_guidance_scale": A, "min_seconds": A,
    "mixed_precision_first_steps": A, "mixed_precision_format": A, "mixed_precision_last_steps": A,
    "mixed_precision_reasoner_policy": A, "modality_scale": A, "mode": A, "motion_bucket_id": A,
    "motion_encode_batch_size": A, "motion_field_strength_x": A, "motion_field_strength_y": A, "motion_scale": A,
    "motion_speed": A, "mu": A, "neg_prompt": A, "negative_aesthetic_score": A, "negative_attention_mask": A,
    "negative_crops_coords_top_left": A, "negative_encoder_attention_mask": A, "negative_encoder_hidden_states": A,
    "negative_generated_prompt_embeds": A, "negative_image_embeds": A, "negative_index_latents": A,
    "negative_index_strength": A, "negative_ip_adapter_image": A, "negative_ip_adapter_image_embeds": A,
    "negative_original_size": A, "negative_pooled_prompt_embeds": A, "negative_prompt": A, "negative_prompt_2": A,
    "negative_prompt_3": A, "negative_prompt_4": A, "negative_prompt_attention_mask": A,
    "negative_prompt_attention_mask_2": A, "negative_prompt_cu_seqlens": A, "negative_prompt_embeds": A,
    "negative_prompt_embeds_2": A, "negative_prompt_embeds_clip": A, "negative_prompt_embeds_llama3": A,
    "negative_prompt_embeds_mask": A, "negative_prompt_embeds_mask_2": A, "negative_prompt_embeds_pooled": A,
    "negative_prompt_embeds_qwen": A, "negative_prompt_embeds_t5": A, "negative_target_size": A, "noise_aug_strength": A,
    "noise_level": A, "noise_scale": A, "normalize": A, "num_ar_conditional_frames": A,
    "num_ar_latent_conditional_frames": A, "num_frames": A, "num_frames_per_chunk": A, "num_images_per_prompt": A,
    "num_latent_conditional_frames": A, "num_latent_frames_per_chunk": A, "num_prompts_per_image": A,
    "num_temporal_reasoning_steps": A, "num_videos_per_prompt": A, "num_waveforms_per_prompt": A, "original_image": A,
    "original_inference_steps": A, "original_size": A, "output_latent": A, "output_resolution": A, "output_uncertainty": A,
    "overlap_history": A, "padding_mask_crop": A, "pag_adaptive_scale": A, "pag_scale": A, "parallel": A,
    "pooled_prompt_embeds": A, "pose_video": A, "prev_segment_conditioning_frames": A, "prior_callback": A,
    "prior_callback_on_step_end": A, "prior_callback_on_step_end_tensor_inputs": A, "prior_callback_steps": A,
    "prior_guidance_scale": A, "prior_latents": A, "prior_num_inference_steps": A, "prior_timesteps": A,
    "prior_token_ids": A, "prior_token_image_ids": A, "processing_resolution": A, "prompt_2": A, "prompt_3": A,
    "prompt_4": A, "prompt_attention_mask": A, "prompt_attention_mask_2": A, "prompt_cu_seqlens": A, "prompt_embeds": A,
    "prompt_embeds_2": A, "prompt_embeds_clip": A, "prompt_embeds_llama3": A, "prompt_embeds_mask": A,
    "prompt_embeds_mask_2": A, "prompt_embeds_pooled": A, "prompt_embeds_qwen": A, "prompt_embeds_t5": A,
    "prompt_enhancement_kwargs": A, "prompt_enhancement_seed": A, "prompt_latents": A, "prompt_max_new_tokens": A,
    "prompt_reps": A, "prompt_segments": A, "prompt_strength": A, "prompt_template": A, "prompt_upsampling": A,
    "prompt_upsampling_temperature": A, "proportional_attn": A, "pyramid_num_inference_steps_list": A, "ref_image": A,
    "reference_audio": A, "reference_conditions": A, "reference_downscale_factor": A, "reference_image": A,
    "reference_images": A, "reference_latents": A, "render_text_images": A, "repainting_end": A, "repainting_start": A,
    "resample_method_input": A, "resample_method_output": A, "resolution": A, "return_index": A,
    "reverse_editing_direction": A, "round_index": A, "sag_scale": A, "sample_audio": A, "scale": A, "scale_factor": A,
    "scaling_watershed": A, "segment_frame_length": A, "sem_guidance": A, "shift": A, "sigma_conditioning": A, "sigmas": A,
    "silence_padding_duration": A, "skip_guidance_layers": A, "skip_layer_guidance_scale": A, "skip_layer_guidance_start": A,
    "skip_layer_guidance_stop": A, "skip_steps_sigma_threshold": A, "skip_text_cleaning": A, "sound_latents": A,
    "source_embeds": A, "source_guidance_scale": A, "source_image_grid_thw": A, "source_prompt": A, "source_seconds": A,
    "source_subject_category": A, "spatial_patch_size": A, "spatio_temporal_guidance_blocks": A, "src_audio": A, "std": A,
    "stg_scale": A, "system_prompt": A, "t0": A, "t1": A, "target_embeds": A, "target_fps": A, "target_size": A,
    "target_subject_category": A, "task_prompt": A, "task_type": A, "temperature": A, "temporal_overlap": A,
    "temporal_overlap_cond_strength": A, "temporal_patch_size": A, "temporal_tile_size": A, "text_encoder_out_layers": A,
    "text_images": A, "text_to_image_strength": A, "thresholds": A, "timesignature": A, "timesteps": A, "token_indices": A,
    "tokenizer_max_length": A, "tolerance": A, "tone_map_compression_ratio": A, "track_name": A, "transcription": A,
    "true_cfg_scale": A, "truncation_rate": A, "upsampling_height": A, "upsampling_strength": A, "upsampling_width": A,
    "use_cross_timestep": A, "use_dynamic_cfg": A, "use_en_prompt": A, "use_input_image_size_as_output": A,
    "use_kv_cache": A, "use_mean_velocity": A, "use_pe": A, "use_resolution_binning": A, "use_system_prompt": A,
    "use_zero_init": A, "vae_batch_size": A, "vae_latents": A, "video": A, "video_latents": A, "video_length": A,
    "video_noise_sigma_max": A, "video_noise_sigma_min": A, "video_tiles": A, "view_batch_size": A, "vocal_language": A,
    "width": A, "zero_steps": A
}, total=False)
# fmt: on

class InvertArguments(PipelineArguments, total=False):
    images: Any
    mask_image: Any
    output_type: str

class GenerateArguments(PipelineArguments, total=False):
    images: Any
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
