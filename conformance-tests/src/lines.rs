//! One line of text between the runner and a generation: a name and named values.

use std::collections::BTreeMap;
use std::fmt::Write;

/// `name key=value key=value`, with blanks, line ends, `=` and `%` in hexadecimal.
pub(crate) fn write_line<'a>(
    name: &str,
    fields: impl IntoIterator<Item = (&'a str, String)>,
) -> String {
    let mut line = escape(name);
    for (key, value) in fields {
        line.push(' ');
        line.push_str(&escape(key));
        line.push('=');
        line.push_str(&escape(&value));
    }
    line
}

/// The name and the values of a line.
pub(crate) fn read_line(line: &str) -> (String, BTreeMap<String, String>) {
    let mut words = line.trim_end_matches('\n').split(' ');
    let name = unescape(words.next().unwrap_or_default());
    let fields = words.filter_map(|word| {
        let (key, value) = word.split_once('=')?;
        Some((unescape(key), unescape(value)))
    });
    (name, fields.collect())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' ' | '\n' | '\r' | '=' | '%' => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{:02x}", character as u32);
            }
            other => escaped.push(other),
        }
    }
    escaped
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[2..]);
            }
            None => {
                plain.push('%');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back() {
        let nasty = "a b=c%d\nü %20 %";
        let line = write_line(nasty, [("k 1", nasty.to_owned()), ("empty", String::new())]);
        assert!(!line.contains('\n'));
        let (name, fields) = read_line(&line);
        assert_eq!(name, nasty);
        assert_eq!(fields["k 1"], nasty);
        assert_eq!(fields["empty"], "");
    }
}
