"""`esplug doctor`: checks the installation, the machine, the plugins and the model for one run's settings.

Runs in the driver; it probes torch, vLLM and plugins in processes of their own. The trainer imports only the quick
check of the installation. May import every room below the trainer.
"""
