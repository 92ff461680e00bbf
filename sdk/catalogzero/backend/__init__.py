"""The reference receiver of uploads and health reports."""
