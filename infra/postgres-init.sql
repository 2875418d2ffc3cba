-- One database per service; the annotation database holds one schema per campaign.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE annotations;
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
