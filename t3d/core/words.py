"""Words that other programs of the field use, and what they are called here."""

import re

KEYS = {  # the last part of a config's key: other names for it
    'learning_rate': 'lr learningrate learn_rate base_lr max_lr peak_lr init_lr eta step_size lr_g lr_d',
    'batch': 'bs batch_size batchsize train_batch_size global_batch_size total_batch_size per_device_train_batch_size b',
    'accumulate': 'gradient_accumulation_steps gradient_accumulation grad_accum accum accumulate_grad_batches '
    'accumulation_steps grad_accum_steps accumulation',
    'steps': 'iterations iters iter its max_steps num_steps n_steps total_steps max_iters num_iters n_iters num_iterations '
    'max_iterations train_steps max_train_steps num_train_steps training_steps total_iterations nsteps niter',
    'weight_decay': 'wd decay l2 weightdecay',
    'seed': 'random_seed manual_seed rng rng_seed random_state',
    'ema_decay': 'ema ema_rate ema_beta ema_momentum',
    'data.size': 'res resolution image_size img_size imsize size pixels crop_size',
    'optimizer.clip': 'grad_clip gradient_clip gradient_clip_val max_grad_norm clip_norm clip_grad_norm clip_grad',
    'warmup': 'warmup_steps num_warmup_steps lr_warmup_steps warmup_iters lr_warmup',
    'b1': 'beta1 adam_beta1 betas momentum',
    'b2': 'beta2 adam_beta2',
    'optimizer.eps': 'epsilon adam_epsilon adam_eps',
    'sample.guidance': 'cfg cfg_scale guidance_scale scale guidance_weight',
    'sample.steps': 'num_inference_steps sampling_steps ddim_steps sample_steps',
    'data.name': 'dataset dataset_name data_name',
    'data.path': 'data_dir dataset_path data_path data_root root datadir dataset_dir train_data_dir path',
    'data.views': 'num_views n_views',
    'checkpoint.every': 'save_every save_steps ckpt_every save_interval save_freq checkpoint_every checkpointing_steps',
    'checkpoint.keep': 'save_total_limit max_to_keep keep_last checkpoints_total_limit save_top_k',
    'log_every': 'log_steps logging_steps log_interval log_freq print_freq log_every_n_steps',
    'preview_every': 'eval_every val_every sample_every validation_steps eval_steps image_every snap',
    'loader.threads': 'workers num_workers n_workers dataloader_num_workers threads',
    'remat': 'gradient_checkpointing grad_checkpoint checkpoint_activations activation_checkpointing',
    'dtype': 'fp16 bf16 half amp precision mixed_precision float16 bfloat16 fp32 float32 use_fp16',
    'drop_text': 'cond_drop_prob uncond_prob p_uncond dropout class_dropout_prob cfg_dropout',
    'export.prompts': 'prompt prompts',
    'text.length': 'max_length max_tokens context_length seq_len',
    'r1.gamma': 'gamma r1_gamma',
    'mesh.data': 'gpus devices num_gpus n_gpus num_devices ngpu gpu device world_size',
    'diffusion.timesteps': 'num_train_timesteps timesteps num_timesteps',
    'diffusion.schedule': 'beta_schedule noise_schedule',
    'diffusion.prediction': 'prediction_type parameterization',
    'render.samples': 'n_samples num_samples samples_per_ray',
}
EPOCHS = 'Training is counted in optimizer steps, not epochs: set steps (an epoch is the number of records / batch).'
CONFIG = 'The config goes without a flag: `t3d train configs/instant3d.py:tiny`.'
FOLDER = 'The run folder is a flag: --workdir DIR.'
RESUME = 'The same command again, with the same --workdir, resumes; nothing else is needed.'
WEIGHTS = 'To start from the weights of another run: --init-from DIR.'
BOARD = 'Metrics are always written for TensorBoard: `tensorboard --logdir RUN`.'
ADVICE = {  # what to say of words that stand for no config key
    EPOCHS: 'epochs epoch num_epochs max_epochs n_epochs num_train_epochs nepochs kimg',
    CONFIG: 'config config_file config_path cfg_file',
    FOLDER: 'output_dir outdir out output logdir log_dir save_dir run_dir workdir work_dir exp_dir experiment exp_name '
    'default_root_dir results_dir model_dir run run_name output_path o',
    RESUME: 'resume resume_from resume_training resume_from_checkpoint auto_resume continue continue_training ckpt ckpt_path',
    WEIGHTS: 'init_from pretrained pretrained_model pretrained_model_name_or_path load load_from weights checkpoint_path '
    'finetune finetune_from init_checkpoint restore initial_weights',
    BOARD: 'wandb use_wandb tensorboard logger report_to project wandb_project tb',
    'Many processes are started by `python -m launch.train --distributed`: launch/README.md.': 'nodes num_nodes distributed '
    'local_rank nproc_per_node num_processes coordinator ddp strategy',
    'The optimizer is AdamW (of the GAN, Adam): its numbers are optimizer.learning_rate, optimizer.b1, ...': 'adam adamw sgd '
    'optimizer_type optim',
    'JAX chooses the device: JAX_PLATFORMS=cpu or cuda before the command.': 'cpu cuda use_gpu no_cuda accelerator platform',
}
COMMANDS = {  # a command: other names for it
    'generate': 'gen sample infer inference predict run create make text2mesh text-to-3d txt2mesh prompt test-prompt',
    'train': 'fit learn finetune fine-tune trainer training resume',
    'export': 'mesh meshes save convert to-glb glb obj',
    'render': 'video turntable gif spin movie',
    'view': 'viewer show serve server demo gui ui web app gradio open preview',
    'eval': 'evaluate evaluation test score scores metrics validate val fid',
    'sample2d': 'txt2img text2img image images picture sd',
    'weights': 'weight share upload pack checkpoint',
    'plan': 'estimate fits memory capacity budget topology pod',
    'bench': 'benchmark benchmarks speed profile time perf',
    'data': 'dataset datasets build prepare preprocess download',
    'configs': 'config list ls variants models',
    'info': 'describe inspect summary cat',
    'doctor': 'check diagnose env environment version devices status',
}
BENCHMARKS = {  # a benchmark: what it is of
    'render': 'renderer renders volume nerf rays raymarching raymarch',
    'train': 'training trainer step steps fit',
    'start': 'compile compilation startup jit cache',
    'unet': 'stable_diffusion sd sd15 sd21 image_diffusion denoiser diffusion',
    'gan': 'gans eg3d stylegan stylegan2 ganfusion ganfusion_gan discriminator',
    'mv': 'multiview multi_view mvdiffusion mvdream spad epipolar views',
    'sds': 'distillation distill dreamfusion vsd score',
    'decoder': 'instant3d text_to_triplane triplane triplanes triplane_decoder text_decoder',
    'hash': 'hashgrid hash_grid instant_ngp ngp ingp grid',
    'roof': 'roofline bandwidth matmul gflops peak',
    'scale': 'scaling curves devices batch sweep',
    'goals': 'goal ratios peers targets',
    'gpu': 'all accelerator cuda tpu device everything',
}
TABLES = {'benchmark': BENCHMARKS}  # what a table of t3d holds: the words that mean something in it


def key(word: str) -> str | None:
    """The config key that a word of the field means, whole or its last part."""
    return _find(KEYS, word)


def advice(word: str) -> str | None:
    """The sentence for a word that means something other than a key."""
    return _find(ADVICE, word)


def command(word: str) -> str | None:
    """The command that a word means."""
    return next((name for name, others in COMMANDS.items() if word.lower() in others.split()), None)


def entry(what: str, word: str) -> str | None:
    """The entry of a table of such things that a word means."""
    return _find(TABLES.get(what, {}), word.lower())


def _find(table: dict[str, str], word: str) -> str | None:
    snake = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', word.split('.')[-1].lstrip('-')).lower().replace('-', '_')
    return next((name for name, others in table.items() if snake in others.split()), None)
