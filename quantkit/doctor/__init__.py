"""What is wrong here: with this machine's installation, or with a GGUF file; each finding with its cure."""

from __future__ import annotations

from quantkit.doctor.finding import Finding, Verdict, findings
from quantkit.doctor.machine import machine_checks
from quantkit.doctor.model import Model, model_checks

__all__ = ["Finding", "Model", "Verdict", "findings", "machine_checks", "model_checks"]
