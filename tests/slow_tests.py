"""Tests that compile most, by file: marked `slow` here, so that `make test` stays short; `make test-slow` runs them.

Each names what else keeps its subject in `make test`. Other slow tests carry the mark themselves.
"""

LONG = tuple(  # files that take longer than their size says: started first (conftest.py)
    f'test_{name}.py'
    for name in (
        'architecture',
        'bench_decoder',
        'bench_mv',
        'convert_mv',
        'guide_pipeline',
        'half_precision',
        'multiprocess',
        'multiview_metric',
        'playground',
        'python',
        'text_decoder',
    )
)

SLOW = {
    'test_bench.py': (
        'test_a_system_that_only_samples_has_no_step_to_time',
        'test_a_train_step_of_any_system_is_measured',
        'test_a_batch_spread_over_the_devices_renders_the_same',
    ),  # test_throwaways, test_contract
    'test_bench_bare.py': ('test_a_train_step_of_a_set_that_is_not_built',),  # the first step of another
    'test_bench_gan.py': (  # a phase of ours is measured
        'test_a_phase_of_ours_is_an_adam_step_of_its_network',
        'test_the_table_without_a_peer',
        'test_flops_are_counted_for_every_rung_and_near_the_closed_form',
    ),
    'test_evaluate_triplanes.py': (
        'test_the_command_writes_figures_and_plots',
        'test_the_ceiling_is_the_generator_alone',
        'test_the_ceiling_of_captions_is_what_two_views_agree_on[True]',
        'test_the_sweep_sets_the_guidance',
        'test_a_wrong_colour_is_noticed_and_only_that',
        'test_the_ceiling_of_captions_is_what_two_views_agree_on[False]',  # True
        'test_a_picture_is_that_of_its_own_planes_prompt_and_label[renderdiffusion]',
        'test_a_picture_is_that_of_its_own_planes_prompt_and_label[ganfusion]',
    ),
    'test_ganfusion_diffusion.py': (  # test_contract
        'test_generated_assets_do_not_depend_on_their_neighbours_and_render_as_the_generator_does',
        'test_the_other_layouts_train[overrides1]',
        'test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional',
        'test_dropped_text_is_not_read',
        'test_one_batch_is_learnt_by_one_program',
        'test_the_auxiliary_loss_renders_what_is_predicted',
        'test_every_parameter_moves_and_so_does_its_average',
    ),
    'test_ganfusion_schedules.py': ('test_ladder_renders_at_the_resolution_of_its_rung',),  # test_contract
    'test_ganfusion_gan.py': (  # test_contract
        'test_assets_and_sheets',
        'test_a_restored_state_goes_on_with_the_same_bits',
        'test_losses_and_gradients_do_not_depend_on_the_mesh',
        'test_the_renderer_learns_one_image',
    ),
    'test_guided_mv.py': (
        'test_at_the_size_of_the_2d_model_both_are_run_there_and_sides_are_told',
        'test_an_object_does_not_depend_on_its_neighbours',
        'test_a_model_of_noise_is_converted_before_it_is_mixed',
        'test_other_samplers_and_starts_are_finite_and_others',
        'test_consistency_is_the_mixture_where_the_2d_model_is_the_multi_view_model_without_cameras',
    ),
    'test_image_diffusion.py': (
        'test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional',
        'test_scores_of_samples_have_their_controls',
        'test_pictures_are_written_as_pictures',
        'test_the_loss_is_that_of_v_with_min_snr_weights',
        'test_frozen_text_does_not_move',
        'test_dropped_text_is_not_read',
        'test_a_step_learns_and_previews',
    ),  # as ganfusion_diffusion's
    'test_instant3d.py': (  # test_contract
        'test_an_asset_renders_its_own_field',
        'test_steps_from_views_are_those_from_before_there_was_another_supervision',
        'test_preview_shows_renders_beside_targets',
        'test_a_frozen_text_tower_gets_no_gradient',
        'test_the_same_key_gives_the_same_step_and_another_key_another',
        'test_a_step_traces_once_learns_and_moves_every_parameter',
        'test_rays_that_miss_the_box_show_the_background',
    ),
    'test_stylegan2.py': ('test_bfloat16_stays_close_and_clamps_hold',),  # test_half_precision
    'test_stylegan2_discriminator.py': (
        'test_bfloat16_stays_close',
        'test_the_discriminator_is_the_same_on_four_devices',
    ),
    'test_text_decoder.py': (
        'test_each_mechanism_switches_off_alone[token_to_plane-plane_text]',
        'test_each_mechanism_switches_off_alone[style_injection-affine]',
        'test_rematerialisation_keeps_names_values_and_gradients',
        'test_without_every_mechanism_the_text_is_not_read',
        'test_one_token_changes_every_plane_and_noise_is_heard',
        'test_each_mechanism_switches_off_alone[cross_attention-cross_attention]',  # each mechanism alone
    ),
    'test_throwaways.py': ('test_a_population_of_prompts_without_data_and_the_mesh_that_begins_where_it_ended',),
    'test_traced.py': (  # instant3d
        'test_every_system_can_be_kept[ganfusion_diffusion]',
        'test_every_system_can_be_kept[ganfusion_gan]',
        'test_every_system_can_be_kept[image_diffusion]',
        'test_every_system_can_be_kept[renderdiffusion]',
    ),
    'test_triplane_unet.py': (  # kind0
        'test_a_new_network_says_zero[kind0]',
        'test_a_new_network_says_zero[kind1]',
        'test_a_new_network_says_zero[kind2]',
        'test_a_new_network_says_zero[kind3]',
        'test_examples_do_not_see_each_other_and_masked_text_is_not_read[kind2]',
    ),
    'test_triplanes.py': ('test_leading_axes_are_free[lead1]',),
    'test_unet.py': (
        'test_eight_devices_equal_one[(2, 2, 2)]',
        'test_gradients_are_torchs_with_and_without_recomputation[remat1]',
        'test_four_narrow_levels_on_odd_and_oblong_maps_equal_diffusers[size1]',
    ),
    'test_volume.py': (
        'test_chunked_equals_unchunked[16]',
        'test_chunked_equals_unchunked[64]',
        'test_a_batch_over_devices_exchanges_parameter_gradients_only',
        'test_values_and_gradients_match_the_torch_peer[0-orthogonal]',
        'test_values_and_gradients_match_the_torch_peer[7-legacy]',
    ),
    'test_weights_check.py': ('test_a_single_file_against_settings',),
    'test_x64.py': (  # instant3d
        'test_a_system_keeps_to_32_bits[ganfusion_diffusion]',
        'test_a_system_keeps_to_32_bits[ganfusion_gan]',
        'test_a_system_keeps_to_32_bits[image_diffusion]',
        'test_a_system_keeps_to_32_bits[renderdiffusion]',
        'test_values_are_those_of_32_bits[heun]',
        'test_values_are_those_of_32_bits[ddpm]',
    ),
    'test_reconstruct.py': (  # held-out views, the mesh; test_placing and test_requests have the files
        'test_a_batch_of_objects_is_each_by_itself',
        'test_views_of_a_model_are_lifted_by_the_system_that_its_config_names',
        'test_any_number_of_views_and_pictures_that_are_not_square[1]',
        'test_the_same_seed_gives_the_same_object_and_another_seed_another',
        'test_any_number_of_views_and_pictures_that_are_not_square[3]',
        'test_any_number_of_views_and_pictures_that_are_not_square[5]',
        'test_held_out_views_of_a_toy_object_are_near_the_truth[False]',
        'test_an_asset_of_python_is_lifted_when_it_is_saved',
        'test_generate_makes_an_object_of_a_folder',
    ),
    'test_renderdiffusion.py': (
        'test_the_planes_of_the_last_step_are_what_was_last_seen_and_the_asset_renders_them',
        'test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional',
        'test_steps_learn_move_every_parameter_and_compile_once',
        'test_text_and_camera_are_read_and_dropped_text_is_not',
    ),
    'test_mvdiffusion.py': (  # test_mv_unet has the forms; new layers learn first
        'test_other_forms_step_and_every_parameter_moves',
        'test_each_text_or_no_text_by_the_coin_as_if_every_row_were_read_apart',
        'test_each_step_is_of_one_kind_by_seed_and_step_and_both_learn',
        'test_an_object_whose_camera_is_dropped_is_seen_by_a_network_without_cameras[1.0]',
    ),
    'test_records.py': ('test_a_training_reads_them',),  # the examples are those of the packed set
    'test_systems_on_sd.py': (  # the other system, and the slow steps
        'test_dreamfusion_is_guided_by_the_folder',
        'test_a_step_with_the_folder_has_the_shapes_of_its_state[feed_forward]',
    ),
    'test_flash_attention.py': (  # the other networks
        'test_every_self_attention_of_a_network_is_the_kernel_and_none_of_a_text[planes]',
        'test_every_self_attention_of_a_network_is_the_kernel_and_none_of_a_text[flat]',
    ),
    'test_multiview_metric.py': (
        'test_the_floor_is_below_inconsistent_views_and_these_below_shuffled_ones',
        'test_an_object_has_the_same_number_in_any_company_and_whatever_its_place',
    ),
    'test_convert_mv.py': (  # the keys both ways; test_mv_unet: new, it is the plain network
        'test_a_new_network_grows_out_of_any_folder',
    ),
    'test_behind_camera.py': ('test_views_that_look_apart_share_no_points',),
    'test_sample2d.py': (
        'test_weights_of_our_own_system',
        'test_velocity_and_the_fast_solver_are_those_of_diffusers',
        'test_seeds_decide_and_every_sampler_runs',
        'test_a_single_file_beside_settings',
    ),
    'test_make_triplanes.py': ('test_truncation_and_several_views',),
    'test_image_condition.py': (  # pictures squared and refused; test_throwaways reads one
        'test_a_row_that_is_shown_nothing_is_that_of_the_text_alone',
        'test_a_step_moves_the_token_and_a_prior_lends_its_weights',
        'test_a_picture_changes_its_own_object_alone',
    ),
    'test_instant3d_sds.py': (  # pictures; test_guide has the formula
        'test_negatives_adapt_to_the_last_visit_of_each_prompt',
        'test_variants_fit_the_priors_that_they_name[sds_trained]',
        'test_each_prompt_of_a_batch_is_guided_by_itself[views]',
        'test_the_decoder_gets_the_explicit_gradient_through_the_renderer',
    ),
    'test_epipolar.py': (  # masks against a brute force
        'test_masks_are_as_dense_as_known_and_the_released_ones_read_every_fourth_index',
    ),
    'test_evaluate_gan.py': (  # a whole evaluation
        'test_pictures_are_those_of_the_generator_whatever_the_batch',
        'test_a_whole_evaluation',
        'test_variety_counts_what_appears',
        'test_the_gate_of_upsamplers_that_read_w',
    ),
    'test_bench_mv.py': (  # the block; test_mv_unet against diffusers
        'test_the_tables_without_a_peer',
        'test_the_peer_computes_what_ours_does[dense]',
    ),
    'test_align_head.py': (  # the command trains one
        'test_the_command_trains_a_head_that_names_colours',
        'test_a_head_names_colours_of_unseen_nouns',
    ),
    'test_store.py': (  # meta and data; test_survival damages the arrays
        'test_damaged_files_never_restore_silently[state]',
        'test_damaged_files_never_restore_silently[weights]',
    ),
    'test_playground.py': (  # numbers end where the text says
        'test_gradients_point_to_the_picture_and_guesses_to_what_the_noise_leaves_open',
    ),
    'test_guide_pipeline.py': (  # test_bench_sds, against the same peer
        'test_the_gradient_is_that_of_diffusers_and_torch',
    ),
    'test_bench_decoder.py': (  # the check prints one
        'test_the_table_without_a_peer',
    ),
    'test_bench_sds.py': (  # the peer makes the gradient
        'test_the_table_without_a_peer',
    ),
    'test_configs.py': (  # each system has tests of its own; test_contract
        'test_every_variant_makes_its_system_by_shapes_alone[ganfusion_diffusion-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[image_diffusion-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[mvdiffusion-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[dreamfusion-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[instant3d-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[renderdiffusion-tiny]',
        'test_every_variant_makes_its_system_by_shapes_alone[ganfusion_gan-tiny]',
    ),
    'test_mv_unet.py': ('test_a_masked_network_that_is_new_and_sees_all_is_the_dense_one',),  # against diffusers, and plain
    'test_captioners.py': (
        'test_toy_reads_every_object_of_the_grammar',
        'test_catalogue_gives_the_words_of_the_nearest_picture',
    ),  # test_captions; two views tell more than one
    'test_convert.py': ('test_a_unet_is_loaded_bit_by_bit_and_saved_for_diffusers[False]',),  # True
    'test_instant3d_rays.py': (  # test_contract
        'test_a_run_stopped_between_batches_ends_like_one_that_was_not',
        'test_samples_are_sorted_and_half_of_them_stand_about_the_surface',
    ),
    'test_half_precision.py': ('test_a_network_computes_in_half_precision_on_a_cpu[planes-float16]',),  # others
    'test_solids.py': ('test_scenes_are_batched_and_places_without_a_solid_are_empty',),  # rays of scenes
    'test_decimate.py': (  # 0
        'test_ragged_surfaces_stay_manifold[1]',
        'test_ragged_surfaces_stay_manifold[2]',
        'test_ragged_surfaces_stay_manifold[3]',
    ),
    'test_light.py': (  # the sphere
        'test_an_asset_is_saved_with_its_light_removed_on_the_floor',
        'test_the_light_of_a_lit_solid_is_divided_out[128-cube]',
        'test_the_light_of_a_lit_solid_is_divided_out[128-sphere]',
        'test_the_light_of_a_lit_solid_is_divided_out[0-cube]',
    ),
    'test_dreamfusion.py': (  # hash; test_distill has the bands of a gradient
        'test_light_and_its_losses_come_at_their_steps',
        'test_every_field_learns_its_colour[triplane]',
        'test_every_field_learns_its_colour[mlp]',
        'test_bands_change_the_memory_of_a_step_and_not_its_gradient',
    ),
    'test_loop.py': (  # (2, 4)
        'test_resumes_on_another_mesh[(1, 8)]',
        'test_resumes_on_another_mesh[(2, 1)]',
    ),
    'test_offload.py': (  # 8
        'test_a_run_ends_with_the_same_bits_and_goes_on_with_and_without[1]',
    ),
    'test_accumulate.py': (  # the mean of parts of a function
        'test_a_system_moves_by_the_mean_of_its_parts',
    ),
    'test_multiprocess.py': (  # test_survival, and the soak of launch
        'test_killed_in_mid_save_restarts_exactly',
    ),
    'test_cli.py': (  # test_plan
        'test_a_dry_run_counts_parameters_and_bytes',
    ),
    'test_toy_sharpness.py': (  # the other scores
        'test_exact_rays_score_what_rays_of_a_pixel_can_and_others_what_their_controls_say',
    ),
    'test_placing.py': (  # 0
        'test_every_file_stands_there_and_the_sheet_and_cameras_stay_in_scene_units[64]',
    ),
    'test_likeness.py': (  # the vectors and their gradient
        'test_the_loss_of_clip_is_added_with_its_weight',
    ),
    'test_python.py': (  # the page
        'test_lists_seeds_and_what_the_command_makes',
    ),
    'test_inference.py': (  # test_architecture, test_python
        'test_a_finished_run_gets_scores_and_assets',
    ),
}
