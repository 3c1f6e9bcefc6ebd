//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::server::App;

/// Those that are listed, or what the upstream lists if none are.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let catalog = app.service.catalog();
    let mut data: Vec<Value> = catalog.names().map(model).collect();
    if catalog.is_open() {
        let theirs = app.service.backend().list_models().await;
        let theirs = theirs.map_err(|error| ApiError::Embed { error, own_key: false })?;
        if let Some(theirs) = theirs["data"].as_array() {
            data.extend(theirs.iter().cloned());
        }
    }
    Ok(Json(json!({ "object": "list", "data": data })).into_response())
}

/// One that is served. Of an upstream whose models are not listed, any may be.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    app.service.catalog().find(&id)?;
    Ok(Json(model(&id)).into_response())
}

fn model(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": 0, "owned_by": "embedding-cache-server" })
}
