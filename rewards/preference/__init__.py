"""Preference and alignment models that look at pictures and videos."""
