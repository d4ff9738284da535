"""The prepared folder: the one place where the two stages meet, and all that both know.

PREPARED/                  data/processed/<fingerprint>
  dataset_dict.json        so that datasets.load_from_disk(PREPARED) opens it
  train/  eval/            Arrow IPC stream shards with datasets' own state files
  tokenizer/               what AutoTokenizer loads
  rejected.jsonl           each record that was left out, with its reason
  manifest.json            written last: its presence means complete
"""
