"""The runner of vision-language models. The network and the image processors are those of mlx_vlm."""
