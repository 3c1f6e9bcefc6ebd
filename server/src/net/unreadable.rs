//! The answer to what is no HTTP: the status that the HTTP library chose, with the JSON object that
//! every other refusal has.

/// The whole answer in place of `head`, which has a status and no body.
pub(super) fn answer(head: &[u8]) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line.split(' ').nth(1).unwrap_or("400");
    let (message, code) = match status {
        "414" => ("the request's path is too long", "path_too_long"),
        "431" => ("the request's headers are too long", "headers_too_large"),
        _ => ("this cannot be read as a request of HTTP", "invalid_http"),
    };
    let body = serde_json::json!({
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": null,
            "code": code,
        }
    })
    .to_string();
    let length = body.len();
    format!(
        "{line}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_kept_and_explained() {
        for (line, code) in [
            ("HTTP/1.1 400 Bad Request", "invalid_http"),
            ("HTTP/1.1 414 URI Too Long", "path_too_long"),
            ("HTTP/1.1 431 Request Header Fields Too Large", "headers_too_large"),
        ] {
            let head = format!("{line}\r\ncontent-length: 0\r\n\r\n");
            let text = String::from_utf8(answer(head.as_bytes())).unwrap();
            let (found, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(found.starts_with(line) && found.ends_with(&body.len().to_string()), "{text}");
            assert_eq!(found.matches("content-length").count(), 1);
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["error"]["code"], code);
        }
    }
}
