"""Rewards over HTTP: the contract `mmrl-reward/1`, its server and its client. JSON, PNG and safetensors; never pickle."""
