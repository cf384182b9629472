//! Where a setup key is read from. It is never logged, and no other process sees it among our arguments.

use super::failure::Failure;
use anyhow::Context as _;
use proto::setup_key::SetupKey;
use zeroize::Zeroizing;

/// `KEY`, or `file:PATH`.
pub(super) fn read(text: &str) -> Result<SetupKey, Failure> {
    let Some(path) = text.strip_prefix("file:") else {
        return text.parse().map_err(Failure::usage);
    };
    let content =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the setup key from {path}"));
    let content = Zeroizing::new(content.map_err(Failure::Usage)?);
    content.parse().with_context(|| format!("in {path}")).map_err(Failure::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        match read(text) {
            Err(Failure::Usage(error)) => format!("{error:#}"),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_key_comes_from_the_text_or_from_a_file() {
        let key = format!("hf1_{}_{}", "ab".repeat(20), "cd".repeat(16));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{key}\n")).unwrap();
        let from_file = read(&format!("file:{}", file.path().display())).unwrap();
        assert!(read(&key).unwrap() == from_file);
    }

    #[test]
    fn a_malformed_key_is_refused_without_being_shown() {
        let secret = "0123456789".repeat(4);
        let text = refusal(&format!("hf1_{secret}_nonsense"));
        assert!(text.contains("fingerprint") && !text.contains(&secret), "{text}");
        assert!(refusal("file:/nowhere/at/all").contains("/nowhere/at/all"));
    }
}
