"""What a stream consists of besides RAM: handlers, their order, configuration and globalstate."""
