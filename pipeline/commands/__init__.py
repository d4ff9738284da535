"""What the command line does beside the stages: files of settings, launching, looking, checking."""
